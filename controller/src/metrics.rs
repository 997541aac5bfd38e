//! What Prometheus reads. Series about an object are made from the index when they are asked for, so that they go with it.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::index::Health;
use crate::index::watch::SharedIndex;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    outcome: &'static str,
    reason: &'static str,
}

/// Bounds of the time that an answer to the API server takes, in seconds: it waits for two at most.
const ADMISSION_SECONDS: [f64; 8] = [0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.1, 1.0];

/// What the process counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    passes: Family<OutcomeLabel, Counter>,
    writes: Family<OperationLabel, Counter>,
    refreshes: Family<OutcomeLabel, Counter>,
    leads: Gauge,
    admissions: Family<AdmissionLabels, Counter>,
    admission_time: Histogram,
    certificate_expiry: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            passes: Family::default(),
            writes: Family::default(),
            refreshes: Family::default(),
            leads: Gauge::default(),
            admissions: Family::default(),
            admission_time: Histogram::new(ADMISSION_SECONDS),
            certificate_expiry: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Counts a pass over an access: `settled`, `out of date` or `failed`.
    pub fn passed(&self, outcome: &'static str) {
        self.passes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts a Secret that was written: `create`, `replace` or `delete`.
    pub fn wrote(&self, operation: &'static str) {
        self.writes.get_or_create(&OperationLabel { operation }).inc();
    }

    /// Counts a request to a pod's kubelet to refresh: `requested`, `repeated` or `failed`.
    pub fn refreshed(&self, outcome: &'static str) {
        self.refreshes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Notes whether this replica holds the Lease.
    pub fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }

    /// Counts an answer to the API server: a pod was `injected`, `skipped` or `denied`, an access `left out`, what an access asks
    /// for `taken` or `warned` of, or the request was `invalid`.
    pub fn admitted(&self, outcome: &'static str, reason: &'static str) {
        self.admissions
            .get_or_create(&AdmissionLabels { outcome, reason })
            .inc();
    }

    /// Notes how long an answer took.
    pub fn admission_took(&self, time: Duration) {
        self.admission_time.observe(time.as_secs_f64());
    }

    /// Notes when the certificate that is served expires.
    pub fn certificate_expires(&self, at: Timestamp) {
        self.certificate_expiry.set(at.as_second());
    }
}

/// Everything that `/metrics` serves.
#[derive(Debug)]
pub struct Exposition(Registry);

impl Exposition {
    /// The process's counters, and the objects in the index.
    pub fn new(metrics: &Metrics, index: SharedIndex) -> Self {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("llmwarden_controller");
        own.register(
            "build",
            "Version of the controller",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        own.register(
            "leads",
            "1 while this replica holds the Lease",
            metrics.leads.clone(),
        );
        own.register("passes", "Passes over an access", metrics.passes.clone());
        own.register(
            "secret_writes",
            "Secrets that were written",
            metrics.writes.clone(),
        );
        own.register(
            "refreshes",
            "Requests to kubelets to fetch a new version at once",
            metrics.refreshes.clone(),
        );
        own.register(
            "admissions",
            "Answers of the webhook about pods and accesses",
            metrics.admissions.clone(),
        );
        own.register_with_unit(
            "admission_duration",
            "Time that an answer of the webhook took",
            Unit::Seconds,
            metrics.admission_time.clone(),
        );
        own.register_with_unit(
            "webhook_certificate_expiry",
            "Unix time at which the webhook's certificate expires; 0 before there is one",
            Unit::Seconds,
            metrics.certificate_expiry.clone(),
        );
        registry.register_collector(Box::new(Objects(index)));
        Self(registry)
    }

    /// In the text format of `OpenMetrics`.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0)?;
        Ok(out)
    }
}

/// The series about accesses and providers.
#[derive(Debug)]
struct Objects(SharedIndex);

/// One gauge of each access that has a value for it.
struct PerAccess {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: fn(&Health, Timestamp) -> Option<i64>,
}

const PER_ACCESS: [PerAccess; 6] = [
    PerAccess {
        name: "llmwarden_access_credential_version",
        help: "Version that the companion holds",
        unit: None,
        value: |health, _| health.version,
    },
    PerAccess {
        name: "llmwarden_access_key_age",
        help: "Time since the key was first delivered, which is the time since the last rotation",
        unit: Some(Unit::Seconds),
        value: |health, now| Some((now.as_second() - health.last_rotation?.as_second()).max(0)),
    },
    PerAccess {
        name: "llmwarden_access_rotation_due",
        help: "Time until a new key is due; negative when it is overdue",
        unit: Some(Unit::Seconds),
        value: |health, now| Some(health.next_rotation?.as_second() - now.as_second()),
    },
    PerAccess {
        name: "llmwarden_access_withdrawal_due",
        help: "Time until the key is withdrawn, of an access that is no longer allowed; negative afterwards",
        unit: Some(Unit::Seconds),
        value: |health, now| Some(health.withdraw_at?.as_second() - now.as_second()),
    },
    PerAccess {
        name: "llmwarden_access_pods",
        help: "Running pods with the sidecar for the access",
        unit: None,
        value: |health, _| Some(health.pods?.total),
    },
    PerAccess {
        name: "llmwarden_access_pods_delivered",
        help: "Those of them that have said that they deliver its version",
        unit: None,
        value: |health, _| Some(health.pods?.delivered),
    },
];

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let now = Timestamp::now();
        let accesses = self.0.read().health();
        let help = "1 when the access is Ready; the reason says why it is not";
        let mut ready = encoder.encode_descriptor("llmwarden_access_ready", help, None, MetricType::Gauge)?;
        for ((namespace, access), health) in &accesses {
            let labels = [
                ("namespace", namespace.as_str()),
                ("access", access),
                ("reason", &health.reason),
            ];
            ConstGauge::new(i64::from(health.ready)).encode(ready.encode_family(&labels)?)?;
        }
        for PerAccess {
            name,
            help,
            unit,
            value,
        } in &PER_ACCESS
        {
            let mut gauge = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for ((namespace, access), health) in &accesses {
                if let Some(value) = value(health, now) {
                    let labels = [("namespace", namespace.as_str()), ("access", access)];
                    ConstGauge::new(value).encode(gauge.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Accesses that name the provider";
        let mut count =
            encoder.encode_descriptor("llmwarden_provider_accesses", help, None, MetricType::Gauge)?;
        for (provider, accesses) in self.0.read().accesses_per_provider() {
            let accesses = i64::try_from(accesses).unwrap_or(i64::MAX);
            ConstGauge::new(accesses).encode(count.encode_family(&[("provider", provider.as_str())])?)?;
        }
        Ok(())
    }
}
