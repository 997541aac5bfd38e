//! The way to the API server: as a pod has it from its kubelet, or as flags say. `kube`'s own client would bring kubeconfig
//! files along, and all the ways to log in that they know, which would be a third of the program.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{Request, Uri};
use kube::client::Body;
use rustls::RootCertStore;
use secrecy::zeroize::Zeroizing;

use crate::client::Client;
use crate::client::connect::{connector, trust};
use crate::idle::Idle;
use crate::server::BoxError;

/// What the kubelet mounts for a pod's service account.
const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_FILE: &str = "token";
const AUTHORITY_FILE: &str = "ca.crt";
/// How long the head of an answer may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nothing of its body may come. A watch that is open for 290 s, as `kube` asks for it, may be silent as long.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);

/// A client of the API server at `url`, or of that of the pod, which presents the token in the directory `account`, or the
/// pod's. The connection comes with the first request.
pub fn client(url: Option<&Uri>, account: Option<&Path>) -> anyhow::Result<kube::Client> {
    let url = match url {
        Some(url) => url.clone(),
        None => of_the_pod(|name| std::env::var(name).ok())?,
    };
    let over_tls = url.scheme() == Some(&Scheme::HTTPS);
    // Without TLS the pod's own token stays here: anybody in the pod may be listening.
    let account = account.or_else(|| over_tls.then(|| Path::new(ACCOUNT_DIR)));
    let mut roots = RootCertStore::empty();
    if let Some(account) = account.filter(|_| over_tls) {
        let file = account.join(AUTHORITY_FILE);
        let at = || format!("--service-account: {}", file.display());
        trust(&mut roots, &fs::read(&file).with_context(at)?).with_context(at)?;
    }
    let client = Arc::new(Client::new(&url, connector(roots, None)).context("--api-server")?);
    let token = account.map(|account| Arc::<Path>::from(account.join(TOKEN_FILE)));
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (client, token) = (client.clone(), token.clone());
        async move {
            if let Some(token) = token {
                request
                    .headers_mut()
                    .insert(AUTHORIZATION, authorization(&token)?);
            }
            let answer = tokio::time::timeout(HEAD_TIMEOUT, client.send(request)).await??;
            Ok::<_, BoxError>(answer.map(|body| Idle::new(body, IDLE_TIMEOUT)))
        }
    });
    Ok(kube::Client::new(service, "default"))
}

fn of_the_pod(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Uri> {
    let required = |name| {
        variable(name).with_context(|| {
            format!("a kube: source needs an API server: run in a pod, which has {name}, or set --api-server")
        })
    };
    let host = required("KUBERNETES_SERVICE_HOST")?;
    let port = required("KUBERNETES_SERVICE_PORT")?;
    let port: u16 = port
        .parse()
        .with_context(|| format!("KUBERNETES_SERVICE_PORT: {port} is no port"))?;
    let authority = match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    };
    format!("https://{authority}")
        .parse()
        .with_context(|| format!("KUBERNETES_SERVICE_HOST: {host} is no host"))
}

/// The token as it is now: the kubelet replaces it every hour.
fn authorization(file: &Path) -> Result<HeaderValue, BoxError> {
    let token = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let token = Zeroizing::new(token);
    let text = Zeroizing::new(format!("Bearer {}", token.trim()));
    let mut value = match HeaderValue::try_from(text.as_str()) {
        Ok(value) if !token.trim().is_empty() => value,
        _ => return Err(format!("{}: there is no token in it", file.display()).into()),
    };
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_where_its_api_server_is() {
        for (host, port, expected) in [
            ("10.96.0.1", "443", Ok("https://10.96.0.1:443/")),
            ("fd00::1", "6443", Ok("https://[fd00::1]:6443/")),
            ("api.internal", "443", Ok("https://api.internal:443/")),
            ("10.96.0.1", "443/x", Err("KUBERNETES_SERVICE_PORT")),
            ("a b", "443", Err("KUBERNETES_SERVICE_HOST")),
        ] {
            let url = of_the_pod(|name| Some(if name.ends_with("HOST") { host } else { port }.to_owned()));
            match (url, expected) {
                (Ok(url), Ok(expected)) => assert_eq!(url.to_string(), expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (url, _) => panic!("{host} {port}: {url:?}"),
            }
        }
        let error = of_the_pod(|_| None).expect_err("nothing says where");
        assert!(error.to_string().contains("--api-server"), "{error}");
    }

    #[test]
    fn a_token_is_shown_to_nobody_and_has_to_be_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(TOKEN_FILE);
        assert!(authorization(&file).is_err());
        for (text, expected) in [("abc\n", Some("Bearer abc")), ("\n", None), ("a\nb", None)] {
            fs::write(&file, text).expect("written");
            let value = authorization(&file);
            assert_eq!(
                value.as_ref().ok().map(HeaderValue::as_bytes),
                expected.map(str::as_bytes)
            );
            assert!(!format!("{value:?}").contains("abc"));
        }
    }
}
