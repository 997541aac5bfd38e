//! `make bench`: how fast a key is delivered, how much the endpoint answers, what the proxy costs, how many accesses the
//! controller carries, how long the API server waits for its webhook, and what the programs weigh. Everything is compared with
//! something bare that does the same in the same run, as a machine's own figures say little.
//!
//! `BENCH=delivery,endpoint,proxy,scale,admission` measures these alone; `ACCESSES=1000` has `scale` measure that number alone.

mod admission;
mod delivery;
mod endpoint;
mod figures;
mod load;
mod proxy;
mod scale;

use anyhow::{Context, Result, ensure};
use llmwarden_tests::binaries;

use figures::{Report, Weight};

#[tokio::main]
async fn main() -> Result<()> {
    ensure!(
        !cfg!(debug_assertions),
        "figures of debug builds say nothing: run `make bench`"
    );
    let wanted = std::env::var("BENCH").unwrap_or_default();
    let wanted = |part: &str| wanted.is_empty() || wanted.split(',').any(|name| name == part);
    let mut report = Report {
        weights: vec![
            Weight::size("sidecar, file size", &binaries::sidecar()?)?,
            Weight::size("controller, file size", &binaries::controller()?)?,
        ],
        ..Report::default()
    };
    if wanted("delivery") {
        delivery::measure(&mut report).await?;
    }
    if wanted("endpoint") {
        report.throughput = Some(endpoint::measure().await?);
    }
    if wanted("proxy") {
        report.proxy = Some(Box::pin(proxy::measure()).await?);
    }
    if wanted("scale") {
        let numbers = std::env::var("ACCESSES").ok().filter(|text| !text.is_empty());
        for accesses in numbers.as_deref().unwrap_or("1000,10000").split(',') {
            let accesses = accesses
                .parse()
                .context("ACCESSES: numbers between commas, such as 1000,10000")?;
            let scale = Box::pin(scale::measure(accesses)).await?;
            // The next one takes minutes.
            eprintln!("{}", scale.table());
            report.scales.push(scale);
        }
    }
    if wanted("admission") {
        report.admission = Some(Box::pin(admission::measure()).await?);
    }
    report.publish(&binaries::target_dir()?.join("bench.json"))
}
