//! What was measured, as a table and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::admission::Admission;
use crate::delivery::{Delivery, ROTATIONS};
use crate::endpoint::Throughput;
use crate::proxy::Comparison;
use crate::scale::Scale;

/// All figures of one run.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How fast a key is delivered.
    pub deliveries: Vec<Delivery>,
    /// How many requests the endpoint answers.
    pub throughput: Option<Throughput>,
    /// What the proxy costs, against nginx.
    pub proxy: Option<Comparison>,
    /// Many accesses.
    pub scales: Vec<Scale>,
    /// How long the webhook takes.
    pub admission: Option<Admission>,
    /// What the programs weigh.
    pub weights: Vec<Weight>,
}

impl Report {
    /// Prints the table, and writes the JSON to `output`.
    pub fn publish(&self, output: &Path) -> Result<()> {
        println!(
            "\n{:<52}{:>10}{:>10}{:>12}",
            format!("{ROTATIONS} rotations each"),
            "p50 ms",
            "p99 ms",
            "p50 / bare"
        );
        for delivery in &self.deliveries {
            println!("{}", delivery.line());
        }
        if let Some(throughput) = &self.throughput {
            println!("\n{}", throughput.table());
        }
        if let Some(proxy) = &self.proxy {
            println!("\n{}", proxy.table());
        }
        for scale in &self.scales {
            println!("\n{}", scale.table());
        }
        if let Some(admission) = &self.admission {
            println!("\n{}", admission.table());
        }
        println!();
        for weight in &self.weights {
            println!("{:<52}{:>6} KiB", weight.what, weight.kib);
        }
        fs::write(output, serde_json::to_vec_pretty(self)?)?;
        println!("also in {}", output.display());
        Ok(())
    }
}

/// Size of a file or memory of a process.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Weight {
    what: &'static str,
    kib: u64,
}

impl Weight {
    /// The size of a program.
    pub fn size(what: &'static str, program: &Path) -> Result<Self> {
        Ok(Self {
            what,
            kib: fs::metadata(program)?.len() / 1024,
        })
    }

    /// The resident memory of a process.
    pub fn resident(what: &'static str, pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(Self {
            what,
            kib: kib.context("no VmRSS")?.parse()?,
        })
    }

    /// In KiB.
    pub fn kib(&self) -> u64 {
        self.kib
    }
}

/// Of sorted values.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> T {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// The one in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 50)
}
