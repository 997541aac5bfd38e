//! What is counted, in Prometheus' words. Labels are access names and fixed words, never anything a caller sent.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::proxy::account::ProxyMetrics;
use crate::store::{Held, Slot, Store};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AccessLabel {
    pub(crate) access: String,
}

type PerAccess = Family<AccessLabel, Gauge>;

/// From what a watch takes to what a pod takes that the kubelet forgot.
const LAGS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0,
];

/// Whole seconds since then. Never negative: the clock may have been set back since, or was another one.
pub fn age_seconds(then: Timestamp) -> i64 {
    Timestamp::now().duration_since(then).as_secs().max(0)
}

/// The metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    /// Those of the proxy.
    pub proxy: Arc<ProxyMetrics>,
    registry: Mutex<Registry>,
    requests: Family<CodeLabel, Counter>,
    /// Of those, the most: with code 200.
    ok: Counter,
    refusals: Family<ReasonLabel, Counter>,
    served_version: PerAccess,
    file_version: PerAccess,
    age: PerAccess,
    source_problem: PerAccess,
    file_problem: PerAccess,
    lacking: PerAccess,
    lag: Family<AccessLabel, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("llmwarden_sidecar");
        registry.register(
            "build",
            "Version of the sidecar",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let requests = Family::<CodeLabel, Counter>::default();
        let ok = requests.get_or_create(&CodeLabel { code: 200 }).clone();
        let mut all = Self {
            proxy: Arc::default(),
            registry: Mutex::default(),
            ok,
            requests,
            refusals: Family::default(),
            served_version: Family::default(),
            file_version: Family::default(),
            age: Family::default(),
            source_problem: Family::default(),
            file_problem: Family::default(),
            lacking: Family::default(),
            lag: Family::new_with_constructor(|| Histogram::new(LAGS)),
        };
        registry.register("requests", "Answers of the endpoint", all.requests.clone());
        registry.register(
            "refusals",
            "Requests and connections that were refused, by reason",
            all.refusals.clone(),
        );
        for (name, help, gauges) in [
            (
                "served_version",
                "Version that the endpoint serves; 0 without a key",
                &all.served_version,
            ),
            (
                "file_version",
                "Version that the files show; 0 without a key",
                &all.file_version,
            ),
            (
                "source_failing",
                "1 while the source can't be read",
                &all.source_problem,
            ),
            (
                "files_failing",
                "1 while the files can't be written",
                &all.file_problem,
            ),
            (
                "features_lacking",
                "What the companion asks for and this sidecar lacks; /status names it",
                &all.lacking,
            ),
        ] {
            registry.register(name, help, gauges.clone());
        }
        registry.register_with_unit(
            "key_age",
            "Time since the key that is served was made",
            Unit::Seconds,
            all.age.clone(),
        );
        registry.register_with_unit(
            "delivery_lag",
            "Time from the making of a version to its files, of versions that replaced another one here",
            Unit::Seconds,
            all.lag.clone(),
        );
        all.proxy.register(&mut registry);
        all.registry = Mutex::new(registry);
        all
    }
}

impl Metrics {
    /// Counts a refusal.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts an answer.
    pub fn answered(&self, code: u16) {
        if code == 200 {
            self.ok.inc();
        } else {
            self.requests.get_or_create(&CodeLabel { code }).inc();
        }
    }

    /// Counts a version that was issued then and is in its files now.
    pub fn delivered(&self, access: &str, issued_at: Timestamp) {
        let label = AccessLabel {
            access: access.to_owned(),
        };
        let lag = Timestamp::now().duration_since(issued_at).as_secs_f64();
        // The controller's clock may be ahead of this one.
        self.lag.get_or_create(&label).observe(lag.max(0.0));
    }

    /// All metrics, as `/metrics` serves them.
    pub fn text(&self, store: &Store) -> String {
        for access in store.accesses() {
            if let Some(slot) = store.get(access) {
                self.show(access, &slot);
            }
        }
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if text::encode(&mut out, &registry).is_err() {
            // Writing to a string does not fail; a reader would notice the missing end.
            let _ = writeln!(out, "# encoding failed");
        }
        out
    }

    fn show(&self, access: &str, slot: &Slot) {
        let label = AccessLabel {
            access: access.to_owned(),
        };
        let set = |gauges: &PerAccess, value: i64| {
            gauges.get_or_create(&label).set(value);
        };
        let number = |version: u64| i64::try_from(version).unwrap_or(i64::MAX);
        let (mut version, mut file_version, mut lacking) = (0, 0, 0);
        if let Held::Active(delivered) = &slot.held {
            version = number(delivered.version());
            file_version = slot.file_version.map_or(0, number);
            lacking = i64::try_from(delivered.lacking().len()).unwrap_or(i64::MAX);
            set(&self.age, age_seconds(delivered.issued_at()));
        } else {
            self.age.remove(&label);
        }
        set(&self.served_version, version);
        set(&self.file_version, file_version);
        set(&self.lacking, lacking);
        set(&self.source_problem, slot.source_problem.is_some().into());
        set(&self.file_problem, slot.file_problem.is_some().into());
    }
}
