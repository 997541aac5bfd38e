//! The way to the API server: as a pod has it from its kubelet, or as flags say. `kube`'s own client would bring kubeconfig
//! files along, and all the ways to log in that they know, which is a tenth of the program.

use std::fs;
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
use crate::server::BoxError;

const TOKEN_FILE: &str = "token";
const AUTHORITY_FILE: &str = "ca.crt";
/// How long the head of an answer may take. How long a watch may be silent, `kube` knows.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of the API server at `url`, or of that of the pod, which presents the token in the directory `account`. The
/// connection comes with the first request.
pub fn client(url: Option<&Uri>, account: &Path) -> anyhow::Result<kube::Client> {
    let url = match url {
        Some(url) => url.clone(),
        None => of_the_pod()?,
    };
    let mut roots = RootCertStore::empty();
    if url.scheme() == Some(&Scheme::HTTPS) {
        let file = account.join(AUTHORITY_FILE);
        let at = || format!("--service-account: {}", file.display());
        trust(&mut roots, &fs::read(&file).with_context(at)?).with_context(at)?;
    }
    let client = Arc::new(Client::new(&url, connector(roots, None)).context("--api-server")?);
    let token = Arc::<Path>::from(account.join(TOKEN_FILE));
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (client, token) = (client.clone(), token.clone());
        async move {
            if let Some(token) = authorization(&token)? {
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            let answer = tokio::time::timeout(HEAD_TIMEOUT, client.send(request)).await;
            Ok::<_, BoxError>(answer??)
        }
    });
    Ok(kube::Client::new(service, "default"))
}

fn of_the_pod() -> anyhow::Result<Uri> {
    let variable = |name| {
        std::env::var(name).with_context(|| {
            format!("a kube: source needs an API server: run in a pod, which has {name}, or set --api-server")
        })
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let url = format!("https://{host}:{port}");
    url.parse()
        .with_context(|| format!("KUBERNETES_SERVICE_HOST and _PORT make {url}"))
}

/// The token as it is now: the kubelet replaces it every hour. None is needed where somebody else vouches for us, as
/// `kubectl proxy` does.
fn authorization(file: &Path) -> Result<Option<HeaderValue>, BoxError> {
    let token = match fs::read_to_string(file) {
        Ok(token) => Zeroizing::new(token),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", file.display()).into()),
    };
    let text = Zeroizing::new(format!("Bearer {}", token.trim()));
    let mut value =
        HeaderValue::try_from(text.as_str()).map_err(|_| format!("{}: this is no token", file.display()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
