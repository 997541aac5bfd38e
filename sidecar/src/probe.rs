//! `llmwarden-sidecar probe`: what the kubelet asks before it starts the agent's containers. What is printed reaches the
//! pod's events.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// Less than the kubelet gives it.
const PATIENCE: Duration = Duration::from_secs(3);
/// No answer is longer.
const MAX_ANSWER: u64 = 64 * 1024;

/// Prints what the sidecar that listens on `status` says; success if it has a key for every access.
pub fn run(status: SocketAddr) -> ExitCode {
    match ask(status) {
        Ok((true, text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok((false, text)) => {
            println!("{text}");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("the sidecar does not answer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(mut status: SocketAddr) -> io::Result<(bool, String)> {
    if status.ip().is_unspecified() {
        status.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let mut stream = TcpStream::connect_timeout(&status, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /startupz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let (head, text) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an answer in HTTP"))?;
    Ok((head.split(' ').nth(1) == Some("200"), text.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The sidecar's answer, as it goes over the wire.
    fn asked(answer: &'static str) -> io::Result<(bool, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 512];
            let read = stream.read(&mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("an answer");
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let seen = ask(SocketAddr::from(([0, 0, 0, 0], port)));
        let request = server.join().expect("no panic");
        assert!(request.starts_with("GET /startupz HTTP/1.1\r\n"), "{request}");
        seen
    }

    #[test]
    fn says_what_the_sidecar_says() {
        let ready = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
        assert_eq!(asked(ready).expect("an answer"), (true, "ok".to_owned()));
        let waiting = "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for a: holds no key\n";
        let (good, text) = asked(waiting).expect("an answer");
        assert_eq!((good, text.as_str()), (false, "waiting for a: holds no key"));
        assert!(asked("").is_err());
    }

    #[test]
    fn a_sidecar_that_is_not_there_is_an_error() {
        let gone = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        assert!(ask(gone.expect("an address")).is_err());
    }
}
