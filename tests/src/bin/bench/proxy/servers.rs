//! The sidecar and nginx, set up alike, and what stands for the provider.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llmwarden_proto::delivery::{Delivery, Upstream};
use llmwarden_proto::names;
use llmwarden_proto::profile::ProviderKind;
use llmwarden_tests::certificates::Authority;
use llmwarden_tests::sidecar::{self, Sidecar};
use llmwarden_tests::{Process, Volume, binaries, free_port, try_eventually, volume};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::PATH;
use crate::load::{OTHERS, SERVER, Target, on_core};

const ACCESS: &str = "agent";
const KEY: &str = "sk-bench-0123456789abcdef0123456789abcdef0123456789abcdef";
const PLACEHOLDER: &str = "sk-llmwarden-0123456789abcdef0123456789abcdef";
/// How many idle connections to the provider the sidecar keeps, and nginx is told to.
const MAX_IDLE: usize = 256;
const SOON: Duration = Duration::from_secs(30);

/// All that run. Dropping it ends them.
pub struct Servers {
    /// The provider without a proxy.
    pub direct: Target,
    /// The sidecar, and nginx.
    pub proxies: [Target; 2],
    _kept: (Sidecar, Volume, [Process; 2], TempDir),
}

impl Servers {
    /// Starts them, each proxy on the same core.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = Authority::new(dir.path())?;
        let (provider, port, answer) = start_provider(dir.path(), &authority).await?;
        let (sidecar, volume) = start_sidecar(&authority, port).await?;
        let (nginx, nginx_port) = start_nginx(dir.path(), &authority, port).await?;
        let target = |process: &Process, port, prefix, key| Target {
            pid: process.pid(),
            address: ([127, 0, 0, 1], port).into(),
            tls: None,
            request: request(port, prefix, key),
            end: answer.clone().into_bytes(),
            awake: false,
        };
        let proxied = |process, port| target(process, port, "/proxy/agent", PLACEHOLDER);
        let servers = Self {
            direct: Target {
                tls: Some(connector(&authority)?),
                ..target(&provider, port, "", KEY)
            },
            proxies: [
                proxied(sidecar.process(), sidecar.endpoint().port()),
                proxied(&nginx, nginx_port),
            ],
            _kept: (sidecar, volume, [provider, nginx], dir),
        };
        on_core(servers.direct.pid, OTHERS)?;
        for proxy in &servers.proxies {
            on_core(proxy.pid, SERVER)?;
        }
        Ok(servers)
    }
}

/// A bare responder, its port, and its answer.
async fn start_provider(dir: &Path, authority: &Authority) -> Result<(Process, u16, String)> {
    let answer = serde_json::json!({
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": "It is sunny. ".repeat(16) },
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 90, "completion_tokens": 64, "total_tokens": 154 },
    })
    .to_string();
    let certificate = authority.server("provider", &["localhost"])?;
    let program = std::env::current_exe()?.with_file_name("bare");
    let mut command = Command::new(program);
    command
        .arg(&answer)
        .args([&certificate.certificate, &certificate.key]);
    let process = Process::spawn("bare", &command, dir.join("provider.log"))?;
    let address = process.await_log(SOON, |line| line.contains(':')).await?;
    let (_, port) = address.rsplit_once(':').context("no address")?;
    Ok((process, port.parse()?, answer))
}

/// What is asked: as the provider's SDK for Python sends it.
fn request(port: u16, prefix: &str, key: &str) -> Vec<u8> {
    let body = serde_json::json!({
        "model": "gpt-4o",
        "messages": [
            { "role": "system", "content": "You are a helpful agent." },
            { "role": "user", "content": "How is the weather? ".repeat(18) },
        ],
    })
    .to_string();
    format!(
        "POST {prefix}{PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept-Encoding: gzip, deflate\r\n\
             Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n\
             User-Agent: OpenAI/Python 1.109.1\r\nX-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\n\
             X-Stainless-Runtime: CPython\r\nX-Stainless-Retry-Count: 0\r\nAuthorization: Bearer {key}\r\n\
             Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn connector(authority: &Authority) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate())?)?;
    let crypto = rustls::crypto::aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(crypto.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// With the volume that its key comes from.
async fn start_sidecar(authority: &Authority, provider: u16) -> Result<(Sidecar, Volume)> {
    let base_url = format!("https://localhost:{provider}/v1");
    let document = Delivery {
        upstream: Some(Upstream {
            ca_bundle: Some(std::fs::read_to_string(authority.certificate())?),
            ..ProviderKind::Openai.upstream(Some(&base_url))
        }),
        requires: vec!["proxy".to_owned()],
        ..volume::document(1)
    };
    let mut volume = Volume::new()?;
    volume.write(&[
        (names::API_KEY, KEY.as_bytes()),
        (names::PLACEHOLDER, PLACEHOLDER.as_bytes()),
        (names::LIVE_JSON, &serde_json::to_vec(&document)?),
    ])?;
    let options = sidecar::Options {
        log_level: "info".to_owned(),
        proxied: vec![ACCESS.to_owned()],
        ..sidecar::Options::new([volume.source(ACCESS)])
    };
    let sidecar = Sidecar::start(options).await?;
    sidecar.await_keys(SOON).await?;
    Ok((sidecar, volume))
}

async fn start_nginx(dir: &Path, authority: &Authority, provider: u16) -> Result<(Process, u16)> {
    let port = free_port();
    let config = dir.join("nginx.conf");
    std::fs::write(
        &config,
        nginx_config(dir, &authority.certificate(), port, provider),
    )?;
    let mut command = Command::new(binaries::nginx()?);
    command
        .args(["-e", "stderr", "-c"])
        .arg(&config)
        .arg("-p")
        .arg(dir);
    let process = Process::spawn("nginx", &command, dir.join("nginx.log"))?;
    try_eventually("nginx", SOON, async || {
        ensure!(process.exited().is_none(), "{}", process.log());
        Ok(TcpStream::connect(("127.0.0.1", port)).await?)
    })
    .await?;
    Ok((process, port))
}

/// One process, as workers outlive a master that is killed. It is spared the check of the caller's credential.
fn nginx_config(dir: &Path, authority: &Path, port: u16, provider: u16) -> String {
    let (dir, authority) = (dir.display(), authority.display());
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {dir}/{what};"))
        .join(" ");
    format!(
        r#"
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    {temporary}
    keepalive_requests 1000000000;
    upstream provider {{
        server 127.0.0.1:{provider};
        keepalive {MAX_IDLE};
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location /proxy/{ACCESS}/ {{
            proxy_pass https://provider/;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Host localhost:{provider};
            proxy_set_header Connection "";
            proxy_set_header Accept-Encoding identity;
            proxy_set_header Authorization "Bearer {KEY}";
            proxy_set_header X-Api-Key "";
            proxy_set_header Cookie "";
            proxy_set_header Proxy-Authorization "";
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {authority};
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_read_timeout 10m;
        }}
    }}
}}
"#
    )
}
