//! What is counted of one access, and which versions its running requests go on with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::refusal::Refusal;
use super::usage::Usage;
use crate::metrics::AccessLabel;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    access: String,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    access: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndingLabel {
    access: String,
    ending: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    access: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    access: String,
    version: u64,
}

type Histograms = Family<AccessLabel, Histogram, fn() -> Histogram>;

/// From a cached answer to a long piece of reasoning.
const SECONDS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0,
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The proxy's metrics.
#[derive(Debug)]
pub struct ProxyMetrics {
    answers: Family<ClassLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    endings: Family<EndingLabel, Counter>,
    retries: Family<AccessLabel, Counter>,
    tokens: Family<DirectionLabel, Counter>,
    first_byte: Histograms,
    duration: Histograms,
    in_flight: Family<VersionLabel, Gauge>,
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        let histograms = || -> Histograms { Family::new_with_constructor(|| Histogram::new(SECONDS)) };
        Self {
            answers: Family::default(),
            refusals: Family::default(),
            endings: Family::default(),
            retries: Family::default(),
            tokens: Family::default(),
            first_byte: histograms(),
            duration: histograms(),
            in_flight: Family::default(),
        }
    }
}

impl ProxyMetrics {
    /// Adds all of them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("proxy");
        registry.register(
            "answers",
            "Answers of providers that were passed on, by class of status",
            self.answers.clone(),
        );
        registry.register(
            "refusals",
            "Requests that were refused here, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "endings",
            "How answers ended: complete, broken off by the provider, or left by the caller",
            self.endings.clone(),
        );
        registry.register(
            "retries",
            "Requests that were sent once more with another key",
            self.retries.clone(),
        );
        registry.register(
            "tokens",
            "Tokens that answers say were used, by direction",
            self.tokens.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "Time from a request to the head of its answer",
            Unit::Seconds,
            self.first_byte.clone(),
        );
        registry.register_with_unit(
            "duration",
            "Time from a request to the end of its answer",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register(
            "in_flight",
            "Running requests, by the version of the key that they use",
            self.in_flight.clone(),
        );
    }
}

impl ProxyMetrics {
    /// Writes what is read only now and then: what the accesses have in flight.
    pub fn show<'a>(&self, accounts: impl Iterator<Item = &'a Account>) {
        self.in_flight.clear();
        for account in accounts {
            for (version, count) in account.in_use() {
                let label = VersionLabel {
                    access: account.access.clone(),
                    version,
                };
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.in_flight.get_or_create(&label).set(count);
            }
        }
    }
}

/// One access.
#[derive(Debug)]
pub struct Account {
    access: String,
    metrics: Arc<ProxyMetrics>,
    /// In the order of [`CLASSES`].
    answers: [Counter; 5],
    complete: Counter,
    /// In and out.
    tokens: [Counter; 2],
    first_byte: Histogram,
    duration: Histogram,
    /// Versions, which are a few at most, and how many running requests use each.
    in_use: Mutex<Vec<(u64, u64)>>,
}

impl Account {
    /// Of an access that nothing was asked of yet.
    pub fn new(access: &str, metrics: Arc<ProxyMetrics>) -> Self {
        let access = access.to_owned();
        let label = AccessLabel {
            access: access.clone(),
        };
        let ending = EndingLabel {
            access: access.clone(),
            ending: "complete",
        };
        let answers = CLASSES.map(|class| {
            let access = access.clone();
            metrics
                .answers
                .get_or_create(&ClassLabel { access, class })
                .clone()
        });
        let tokens = ["in", "out"].map(|direction| {
            let access = access.clone();
            let label = DirectionLabel { access, direction };
            metrics.tokens.get_or_create(&label).clone()
        });
        let complete = metrics.endings.get_or_create(&ending).clone();
        let first_byte = metrics.first_byte.get_or_create(&label).clone();
        let duration = metrics.duration.get_or_create(&label).clone();
        Self {
            answers,
            complete,
            tokens,
            first_byte,
            duration,
            in_use: Mutex::default(),
            access,
            metrics,
        }
    }

    /// The name of the access.
    pub fn access(&self) -> &str {
        &self.access
    }

    /// Counts a refusal.
    pub fn refused(&self, refusal: &Refusal) {
        let label = ReasonLabel {
            access: self.access.clone(),
            reason: refusal.reason(),
        };
        self.metrics.refusals.get_or_create(&label).inc();
    }

    /// How many running requests use each version.
    pub fn in_use(&self) -> BTreeMap<u64, u64> {
        self.uses().iter().copied().collect()
    }

    fn begin_use(&self, version: u64) {
        let mut uses = self.uses();
        match uses.iter_mut().find(|(used, _)| *used == version) {
            Some((_, count)) => *count += 1,
            None => uses.push((version, 1)),
        }
    }

    fn end_use(&self, version: u64) {
        let mut uses = self.uses();
        if let Some(at) = uses.iter().position(|(used, _)| *used == version) {
            uses[at].1 -= 1;
            if uses[at].1 == 0 {
                uses.swap_remove(at);
            }
        }
    }

    fn uses(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request and its answer, from the first to the last byte.
#[derive(Debug)]
pub struct Exchange {
    account: Arc<Account>,
    version: u64,
    begun: Instant,
    /// Whether an answer is on its way whose end is not known yet.
    open: bool,
    /// Its place among those that may be on their way.
    _place: OwnedSemaphorePermit,
}

impl Exchange {
    /// A request that begins with a version.
    pub fn begin(account: Arc<Account>, version: u64, place: OwnedSemaphorePermit) -> Self {
        account.begin_use(version);
        Self {
            account,
            version,
            begun: Instant::now(),
            open: false,
            _place: place,
        }
    }

    /// It goes on with a key of this version.
    pub fn go_on_with(&mut self, version: u64) {
        self.account.begin_use(version);
        self.account.end_use(self.version);
        self.version = version;
    }

    /// It is sent once more, with a key of this version.
    pub fn retry(&mut self, version: u64) {
        self.go_on_with(version);
        let label = AccessLabel {
            access: self.account.access.clone(),
        };
        self.account.metrics.retries.get_or_create(&label).inc();
    }

    /// The head of the answer is there, and is passed on.
    pub fn answered(&mut self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.account.answers[class - 1].inc();
        self.account
            .first_byte
            .observe(self.begun.elapsed().as_secs_f64());
        self.open = true;
    }

    /// What the answer says was used.
    pub fn used(&self, usage: Usage) {
        let [input, output] = &self.account.tokens;
        input.inc_by(usage.input);
        output.inc_by(usage.output);
    }

    /// The answer has ended as it should.
    pub fn completed(&mut self) {
        if std::mem::take(&mut self.open) {
            self.account.complete.inc();
            self.account.duration.observe(self.begun.elapsed().as_secs_f64());
        }
    }

    /// The answer has broken off.
    pub fn broken(&mut self, error: &(dyn std::error::Error + 'static)) {
        debug!(access = self.account.access, error, "an answer broke off");
        self.end("broken");
    }

    fn end(&mut self, ending: &'static str) {
        if std::mem::take(&mut self.open) {
            let label = EndingLabel {
                access: self.account.access.clone(),
                ending,
            };
            self.account.metrics.endings.get_or_create(&label).inc();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end("left");
        self.account.end_use(self.version);
    }
}
