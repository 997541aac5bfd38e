use http_body_util::{BodyExt, Full};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Answers with the number of the connection. After `/last` it is closed, as at the end of a server's patience; of `/half`
/// there is only the beginning.
async fn serve(listener: TcpListener) {
    for number in 1.. {
        let (stream, _) = listener.accept().await.expect("a connection");
        tokio::spawn(converse(stream, number));
    }
}

async fn converse(mut stream: TcpStream, number: usize) {
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8_lossy(&head);
        let body = number.to_string();
        let length = body.len() + usize::from(head.starts_with("GET /half"));
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.expect("written");
        if head.starts_with("GET /last") {
            return;
        }
    }
}

fn with_client(test: impl AsyncFnOnce(Client<Full<Bytes>>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener));
        let url = format!("http://{address}/ignored").parse().expect("a URL");
        let client = Client::new(&url, connect::connector(RootCertStore::empty(), None));
        test(client.expect("a client")).await;
    });
}

async fn begin(client: &Client<Full<Bytes>>, path: &'static str) -> Received<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = Uri::from_static(path);
    client.send(request).await.expect("an answer").into_body()
}

/// The number of the connection that a request went out on.
async fn number(client: &Client<Full<Bytes>>, path: &'static str) -> String {
    let body = begin(client, path).await.collect().await.expect("all of it");
    String::from_utf8_lossy(&body.to_bytes()).into_owned()
}

#[test]
fn a_connection_is_used_again() {
    with_client(async |client| {
        for _ in 0..3 {
            assert_eq!(number(&client, "/").await, "1");
        }
        // Those that are used at the same time are several.
        let first = begin(&client, "/").await;
        assert_eq!(number(&client, "/").await, "2");
        drop(first.collect().await.expect("all of it"));
        assert_eq!(client.kept.len(), 2);
    });
}

#[test]
fn one_that_the_server_has_closed_is_not() {
    with_client(async |client| {
        for number in ["1", "2", "3"] {
            // Whether or not the end has been noticed when the next request goes out.
            assert_eq!(self::number(&client, "/last").await, number);
        }
    });
}

#[test]
fn one_with_an_answer_that_nobody_reads_is_closed() {
    with_client(async |client| {
        drop(begin(&client, "/half").await);
        assert_eq!(client.kept.len(), 0);
        assert_eq!(number(&client, "/").await, "2");
    });
}

#[test]
fn only_so_many_are_kept() {
    with_client(async |client| {
        let mut answers = Vec::new();
        for _ in 0..kept::MAX_IDLE + 3 {
            answers.push(begin(&client, "/").await);
        }
        for answer in answers {
            answer.collect().await.expect("all of it");
        }
        assert_eq!(client.kept.len(), kept::MAX_IDLE);
    });
}

#[test]
fn the_host_is_named_without_the_port_that_is_implied() {
    for (url, expected) in [
        ("https://api.openai.com/v1", "api.openai.com"),
        ("https://api.openai.com:443", "api.openai.com"),
        ("http://litellm:4000", "litellm:4000"),
        ("http://user@[::1]:80/", "[::1]"),
        ("https://gateway:80", "gateway:80"),
    ] {
        let url: Uri = url.parse().expect("a URL");
        let client = Client::<Full<Bytes>>::new(&url, connect::connector(RootCertStore::empty(), None));
        assert_eq!(client.expect("a server").host, expected, "{url}");
    }
    for url in ["/v1", "api.openai.com:443", "ftp://host"] {
        let url: Uri = url.parse().expect("a URI");
        let client = Client::<Full<Bytes>>::new(&url, connect::connector(RootCertStore::empty(), None));
        assert!(client.is_err(), "{url}");
    }
}
