//! The fake of a provider as a program, for pods to talk to. Options: `--provider openai`, `--listen 127.0.0.1:0`,
//! `--tls <DNS name or address of the certificate>` (repeatable; plain HTTP without), `--every-ms 0` between two events of a
//! stream.
//!
//! It prints, as one line of JSON, its address and the file with its authority. Then each line of standard input is a list
//! of keys, separated by spaces: from then on these are valid and no others, which an empty line of output confirms. At
//! the end of the input it prints how many requests there were, by key and status, and ends.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use llmwarden_proto::profile::ProviderKind;
use llmwarden_tests::fake_provider::{FakeProvider, Pace};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let mut kind = ProviderKind::Openai;
    let mut listen = "127.0.0.1:0".to_owned();
    let mut names = Vec::new();
    let mut every = 0;
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--provider" => kind = serde_json::from_value(json!(value))?,
            "--listen" => listen = value,
            "--tls" => names.push(value),
            "--every-ms" => every = value.parse()?,
            _ => bail!("{option} is no option"),
        }
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let tls = (!names.is_empty()).then_some(names.as_slice());
    let provider = FakeProvider::listen(kind, listen.parse()?, tls).await?;
    provider.set_pace(Pace {
        every: Duration::from_millis(every),
        ..Pace::default()
    });
    say(&json!({ "address": provider.address(), "authority": provider.authority() }).to_string())?;

    // This thread is not one of those that serve.
    for line in std::io::stdin().lock().lines() {
        provider.allow(line?.split_whitespace());
        say("")?;
    }
    let mut requests = BTreeMap::new();
    for seen in provider.seen() {
        *requests.entry((seen.key, seen.status)).or_insert(0) += 1;
    }
    let requests: Vec<_> = requests
        .iter()
        .map(|((key, status), count)| json!({ "key": key, "status": status, "requests": count }))
        .collect();
    say(&json!(requests).to_string())
}

fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}
