//! How long the API server waits for the webhook: reviews of a pod of kagent's shape, sent over one TLS connection that is kept,
//! as the API server does it, to a controller that knows many accesses. In turns with them the same bytes go to a bare TLS
//! responder, which reads nothing in them and answers as much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::PostParams;
use llmwarden_proto::names;
use llmwarden_tests::installation::{ENABLED_LABEL, SYSTEM};
use llmwarden_tests::{try_eventually, webhook};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::figures::percentile;
use crate::scale::{Field, namespace};

const ACCESSES: usize = 10_000;
const REQUESTS: usize = 2_000;
/// Pods that are created through the API server, dry: fewer, as each takes far longer than the webhook.
const DRY_RUNS: usize = 500;
const SOON: Duration = Duration::from_mins(1);
/// A pod as kagent's Deployments make them, in the request that the API server sends of it.
const REVIEW: &str = include_str!("../../../../controller/src/inject/fixtures/agent.yaml");

/// What a pod has that decides which access it gets.
type Mark = fn(usize) -> Value;

const KINDS: [(&str, bool, Mark); 3] = [
    (
        "annotated pod",
        true,
        |number| json!({ "annotations": { names::INJECT_ANNOTATION: format!("agent-{number}") } }),
    ),
    (
        "pod that a selector selects",
        true,
        |number| json!({ "labels": { "agent": format!("agent-{number}") } }),
    ),
    ("pod that is not concerned", false, |_| json!({})),
];

/// How long answers took.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    accesses: usize,
    requests: usize,
    kinds: Vec<Asked>,
    /// What the API server says of its calls: their mean, with its own part.
    api_server_mean_ms: f64,
}

/// One kind of pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    pod: &'static str,
    webhook: Times,
    bare: Times,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    p50_ms: f64,
    p99_ms: f64,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let ms = |percent| percentile(&times, percent).as_secs_f64() * 1e3;
        Self {
            p50_ms: ms(50),
            p99_ms: ms(99),
        }
    }
}

impl Admission {
    /// Of the report.
    pub fn table(&self) -> String {
        let line = |asked: &Asked| {
            let Asked { pod, webhook, bare } = asked;
            format!(
                "{pod:<52}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>12.1}",
                webhook.p50_ms,
                webhook.p99_ms,
                bare.p50_ms,
                bare.p99_ms,
                webhook.p50_ms / bare.p50_ms
            )
        };
        let lines: Vec<_> = self.kinds.iter().map(line).collect();
        format!(
            "{:<52}{:>10}{:>10}{:>10}{:>10}{:>12}\n{}\n{:<52}{:>10.2} mean",
            format!("{} accesses, {} reviews each", self.accesses, self.requests),
            "p50 ms",
            "p99 ms",
            "bare p50",
            "bare p99",
            "p50 / bare",
            lines.join("\n"),
            "the API server's calls, as it measures them",
            self.api_server_mean_ms
        )
    }
}

/// Measures it, once every access has its key.
pub async fn measure() -> Result<Admission> {
    eprintln!("admission: {ACCESSES} accesses");
    let field = Field::start(ACCESSES, &webhook::FLAGS).await?;
    field.llmwarden.start_controller().await?;
    field.await_delivered(0).await?;

    let secrets = Api::<Secret>::namespaced(field.client.clone(), SYSTEM);
    let certificates = secrets.get(names::CERTIFICATES_SECRET).await?;
    let authorities = certificates.data.and_then(|mut data| data.remove("ca.crt"));
    let mut trusted = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&authorities.context("no ca.crt")?.0) {
        trusted.add(authority?)?;
    }
    let address = field.llmwarden.webhook_url()?;
    let address: SocketAddr = address.trim_start_matches("https://").parse()?;
    let mut webhook = Connection::open(address, trusted).await?;
    let (bare, its_certificate) = bare().await?;
    let mut trusted = RootCertStore::empty();
    trusted.add(its_certificate)?;
    let mut bare = Connection::open(bare, trusted).await?;

    let review: Value = serde_saphyr::from_str(REVIEW)?;
    let mut kinds = Vec::new();
    for (pod, is_injected, mark) in KINDS {
        let mut times = [Vec::new(), Vec::new()];
        // The first ones warm everything up.
        for number in 0..REQUESTS + REQUESTS / 10 {
            let access = number * 7919 % ACCESSES;
            let body = Bytes::from(of_pod(&review, access, mark).to_string());
            let (answer, webhook_time) = webhook.ask(body.clone(), 0).await?;
            let text = std::str::from_utf8(&answer)?;
            ensure!(text.contains("\"allowed\":true"), "{pod}: {text}");
            ensure!(text.contains("\"patch\"") == is_injected, "{pod}: {text}");
            let (_, bare_time) = bare.ask(body, answer.len()).await?;
            if number >= REQUESTS / 10 {
                times[0].push(webhook_time);
                times[1].push(bare_time);
            }
        }
        let [webhook, bare] = times.map(Times::of);
        kinds.push(Asked { pod, webhook, bare });
    }
    Ok(Admission {
        accesses: ACCESSES,
        requests: REQUESTS,
        kinds,
        api_server_mean_ms: through_the_api_server(&field, &review).await?,
    })
}

/// The review, of a pod with this mark in the namespace of that access.
fn of_pod(review: &Value, access: usize, mark: Mark) -> Value {
    let mut review = review.clone();
    let request = &mut review["request"];
    request["namespace"] = namespace(access).into();
    let metadata = &mut request["object"]["metadata"];
    metadata["namespace"] = namespace(access).into();
    for (field, marks) in mark(access).as_object().into_iter().flatten() {
        for (key, value) in marks.as_object().into_iter().flatten() {
            metadata[field][key] = value.clone();
        }
    }
    review
}

/// What the API server measures when it calls the webhook for pods that a selector selects: the mean, in ms.
async fn through_the_api_server(field: &Field, review: &Value) -> Result<f64> {
    field.llmwarden.register_webhook((ENABLED_LABEL, "true")).await?;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let create = async |access: usize| -> Result<bool> {
        let mut pod = of_pod(review, access, KINDS[1].2)["request"]["object"].take();
        // The rest is of an API server's own making.
        pod["spec"]["serviceAccountName"] = "default".into();
        let pod: Pod = serde_json::from_value(pod)?;
        let pods = Api::<Pod>::namespaced(field.client.clone(), &namespace(access));
        let created = pods.create(&dry_run, &pod).await?;
        Ok(created
            .metadata
            .labels
            .is_some_and(|all| all.contains_key(names::INJECTED_LABEL)))
    };
    try_eventually("an injected pod", SOON, async || {
        ensure!(create(0).await?, "not injected");
        Ok(())
    })
    .await?;
    let measured = async || -> Result<[f64; 2]> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = field.client.request_text(request).await?;
        let sum = |what: &str| {
            let series = format!("apiserver_admission_webhook_admission_duration_seconds_{what}{{");
            let ours = text
                .lines()
                .filter(|line| line.starts_with(&series) && line.contains(webhook::OTHERS));
            ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        Ok([sum("sum"), sum("count")])
    };
    let before = measured().await?;
    for number in 0..DRY_RUNS {
        ensure!(create(number).await?, "not injected");
    }
    let after = measured().await?;
    Ok((after[0] - before[0]) / (after[1] - before[1]) * 1e3)
}

/// A connection that is kept.
struct Connection(client::SendRequest<Full<Bytes>>);

impl Connection {
    async fn open(address: SocketAddr, trusted: RootCertStore) -> Result<Self> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(address.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (requests, connection) = client::handshake(TokioIo::new(stream)).await?;
        // A request that fails says how it ended.
        tokio::spawn(connection);
        Ok(Self(requests))
    }

    /// Sends a review, and returns the answer once it is there, and how long that took. `length` is for the bare responder.
    async fn ask(&mut self, body: Bytes, length: usize) -> Result<(Bytes, Duration)> {
        let request = Request::post("/inject")
            .header("host", "llmwarden-webhook.llmwarden-system.svc")
            .header("content-type", "application/json")
            .header("answer-length", length)
            .body(Full::new(body))?;
        let begun = Instant::now();
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let answer = answer.into_body().collect().await?.to_bytes();
        Ok((answer, begun.elapsed()))
    }
}

/// Starts the bare responder, and returns where it is and its certificate.
async fn bare() -> Result<(SocketAddr, CertificateDer<'static>)> {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let certificate = own.cert.der().clone();
    let key = PrivateKeyDer::from_pem_slice(own.signing_key.serialize_pem().as_bytes())?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        let service = service_fn(async |request: Request<hyper::body::Incoming>| -> Result<_> {
            let length = request.headers()["answer-length"].to_str()?.parse()?;
            request.into_body().collect().await?;
            Ok(Response::new(Full::new(Bytes::from(vec![b' '; length]))))
        });
        server::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await?;
        anyhow::Ok(())
    });
    Ok((address, certificate))
}
