//! A controller that is killed before or after any of its writes: its successor ends where it would have ended.
//!
//! One process dies at many points at once: each has a namespace of its own, and the proxy holds each one's write until all
//! are held.

mod change;

use std::collections::BTreeMap;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::ListParams;
use llmwarden_proto::access::{LLMAccess, Trigger};
use llmwarden_proto::delivery::Delivery;
use llmwarden_proto::names::{LIVE_JSON, ROTATE_ANNOTATION};
use llmwarden_tests::api_proxy::{Record, Side, Stop};
use llmwarden_tests::wait::same;
use llmwarden_tests::{Process, Signal, eventually};

use self::change::{Change, provider_ready};
use crate::conflicts::owner;
use crate::controller_faults::Bench;
use crate::support::{SOON, Tenant};

/// Fewer than the accesses that a controller works on at a time.
const HELD_AT_A_TIME: usize = 28;
const GRACE: [&str; 2] = ["--denial-grace=0", "--denial-grace=10m"];

/// How often each event of a change was told.
async fn counts(change: Change, tenant: &Tenant) -> Vec<i32> {
    let events = change.expected().events.iter();
    join_all(events.map(|reason| tenant.occurrences("agent", *reason))).await
}

/// A Secret without what differs from one namespace, or one run, to another.
type Shown = (
    BTreeMap<String, String>,
    Option<String>,
    BTreeMap<String, String>,
    bool,
);

/// What a crash must not change.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    conditions: Vec<(String, String, String)>,
    secrets: BTreeMap<String, Shown>,
    document: Option<Delivery>,
    secret_ref: Option<String>,
    models: Vec<String>,
    newest: Option<Trigger>,
    announced: bool,
    requested: bool,
    provider: (String, String),
}

fn shown(secret: &Secret) -> Shown {
    let text = |value: &[u8]| {
        let text = String::from_utf8_lossy(value).into_owned();
        // Each access has its own.
        if text.starts_with("sk-llmwarden-") {
            "placeholder".to_owned()
        } else {
            text
        }
    };
    let data = secret.data.iter().flatten();
    let data = data.filter(|(name, _)| *name != LIVE_JSON);
    (
        data.map(|(name, value)| (name.clone(), text(&value.0))).collect(),
        owner(secret).map(str::to_owned),
        secret.labels().clone(),
        secret.immutable.unwrap_or_default(),
    )
}

fn document(secret: &Secret) -> Option<Delivery> {
    let bytes = secret.data.as_ref()?.get(LIVE_JSON)?;
    serde_json::from_slice(&bytes.0).ok()
}

/// What stands in a tenant's namespace, and the version that was delivered.
async fn look(tenant: &Tenant) -> (Outcome, u64) {
    let all = tenant.secrets().list(&ListParams::default()).await.unwrap();
    let access = tenant.accesses().get_opt("agent").await.unwrap();
    let requested = access
        .as_ref()
        .is_some_and(|access| access.annotations().contains_key(ROTATE_ANNOTATION));
    let status = access
        .and_then(|access: LLMAccess| access.status)
        .unwrap_or_default();
    let mut document = all
        .iter()
        .find(|secret| secret.name_any() == "agent.llmwarden")
        .and_then(document);
    let version = document.as_ref().map_or(0, |document| document.version);
    if let Some(document) = &mut document {
        document.version = 0;
        document.issued_at = Timestamp::UNIX_EPOCH;
        // It names the namespace.
        document.reason = document.reason.take().map(|_| String::new());
    }
    let conditions = status.conditions.into_iter();
    let outcome = Outcome {
        conditions: conditions.map(|c| (c.type_, c.status, c.reason)).collect(),
        secrets: all
            .iter()
            .map(|secret| (secret.name_any(), shown(secret)))
            .collect(),
        document,
        secret_ref: status.secret_ref.map(|secret| secret.name),
        models: status.provisioned_models,
        newest: status.history.first().map(|newest| newest.trigger.clone()),
        announced: status.withdraw_at.is_some(),
        requested,
        provider: provider_ready(tenant).await,
    };
    (outcome, version)
}

/// Waits until a change has come to its end, and returns that.
async fn await_end(change: Change, tenant: &Tenant, told: &[i32]) -> Outcome {
    let expected = change.expected();
    let all_told: Vec<_> = told.iter().map(|before| before + 1).collect();
    eventually(&format!("{change:?} in {}", tenant.namespace), SOON, async || {
        // Before the rest is looked at: some events come last.
        same(&counts(change, tenant).await, &all_told)?;
        let (outcome, _) = look(tenant).await;
        let names: Vec<_> = outcome.secrets.keys().map(String::as_str).collect();
        let frozen = outcome.secrets.values().any(|secret| secret.3);
        let ready = if change == Change::Provider {
            Some(outcome.provider.clone())
        } else {
            let mut conditions = outcome.conditions.iter().filter(|c| c.0 == "Ready");
            conditions.next().map(|c| (c.1.clone(), c.2.clone()))
        };
        let wanted = (expected.ready.0.to_owned(), expected.ready.1.to_string());
        same(&ready, &Some(wanted))?;
        same(&names.as_slice(), &expected.secrets)?;
        same(&outcome.newest, &expected.newest)?;
        same(&(frozen, outcome.requested), &(false, false))?;
        same(&outcome.provider.0.is_empty(), &false)?;
        Ok::<_, String>(outcome)
    })
    .await
}

/// A change without a crash: its end, and its writes on the way there.
struct Reference {
    change: Change,
    tenant: Tenant,
    outcome: Outcome,
    writes: Vec<Record>,
}

/// One moment at which the controller dies.
struct Point {
    change: Change,
    number: usize,
    side: Side,
    tenant: Tenant,
}

/// Where controllers are killed.
struct Gallows(Bench);

impl Gallows {
    async fn controller(&self, grace: &str) -> Process {
        self.0.controller(&[grace]).await
    }

    /// Lets each change happen without a crash. With `stopped`, the controller learns of it at its start.
    async fn references(&self, changes: &[Change], grace: &str, stopped: bool) -> Vec<Reference> {
        let controller = self.controller(grace).await;
        let tenants: Vec<_> = changes
            .iter()
            .map(|_| Tenant::names(&self.0.installation))
            .collect();
        let cases = || changes.iter().zip(&tenants);
        join_all(cases().map(|(change, tenant)| change.prepare(tenant))).await;
        let told = join_all(cases().map(|(change, tenant)| counts(*change, tenant))).await;
        let before = self.0.proxy.records().len();
        if stopped {
            controller.kill();
        }
        join_all(cases().map(|(change, tenant)| change.make(tenant))).await;
        let _second = if stopped {
            Some(self.controller(grace).await)
        } else {
            None
        };
        let outcomes = join_all(
            cases()
                .zip(&told)
                .map(|((change, tenant), told)| await_end(*change, tenant, told)),
        )
        .await;
        let records = self.0.proxy.records().split_off(before);
        let writes = |change: Change, tenant: &Tenant| {
            let of_it = |record: &&Record| record.wrote() && change.is_of(&record.call, &tenant.namespace);
            records.iter().filter(of_it).cloned().collect()
        };
        changes
            .iter()
            .zip(tenants)
            .zip(outcomes)
            .map(|((change, tenant), outcome)| Reference {
                change: *change,
                writes: writes(*change, &tenant),
                tenant,
                outcome,
            })
            .collect()
    }

    /// Kills a controller at all of these points at once, and shows that the next one ends where it should.
    async fn execute(&self, points: &[Point], references: &[Reference], how: &Execution) {
        let mut controller = self.controller(how.grace).await;
        join_all(points.iter().map(|point| point.change.prepare(&point.tenant))).await;
        let told = join_all(points.iter().map(|point| counts(point.change, &point.tenant))).await;
        if how.stopped {
            controller.kill();
        }
        let mut stops: Vec<Stop> = points.iter().map(|point| self.stop(point)).collect();
        join_all(points.iter().map(|point| point.change.make(&point.tenant))).await;
        if how.stopped {
            controller = self.controller(how.grace).await;
        }
        for (stop, point) in stops.iter_mut().zip(points) {
            let what = format!("write {} of {:?}", point.number, point.change);
            let reached = stop.reached().await;
            reached.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        let versions = join_all(points.iter().map(|point| async { look(&point.tenant).await.1 })).await;
        controller.signal(how.signal).unwrap();
        if how.signal == Signal::SIGTERM {
            stops.into_iter().for_each(Stop::release);
            let status = controller.wait(SOON).await.unwrap();
            assert!(status.success(), "{status}");
        } else {
            controller.wait(SOON).await.unwrap();
            drop(stops);
        }

        let _successor = self.controller(how.grace).await;
        for (point, (version, told)) in points.iter().zip(versions.into_iter().zip(&told)) {
            let reference = references
                .iter()
                .find(|reference| reference.change == point.change);
            assert_same_end(point, &reference.unwrap().outcome, (version, told)).await;
        }
    }

    fn stop(&self, point: &Point) -> Stop {
        let (change, name) = (point.change, point.tenant.namespace.clone());
        self.0
            .proxy
            .stop_at(point.number, point.side, move |call| change.is_of(call, &name))
    }

    /// Kills controllers at every write of these changes.
    async fn enumerate(&self, changes: &[Change], how: &Execution) {
        let references = self.references(changes, how.grace, how.stopped).await;
        let points: Vec<Point> = references
            .iter()
            .flat_map(|reference| (1..=reference.writes.len()).map(move |number| (reference, number)))
            .flat_map(|(reference, number)| [Side::Before, Side::After].map(|side| (reference, number, side)))
            .map(|(reference, number, side)| Point {
                change: reference.change,
                number,
                side,
                tenant: Tenant::names(&self.0.installation),
            })
            .collect();
        for batch in points.chunks(HELD_AT_A_TIME) {
            self.execute(batch, &references, how).await;
        }
        for reference in &references {
            let (change, name) = (reference.change, &reference.tenant.namespace);
            // What came to its end has stayed there.
            assert_eq!(look(&reference.tenant).await.0, reference.outcome, "{change:?}");
            eprintln!(
                "{change:?}: {} writes, {} points: {}",
                reference.writes.len(),
                2 * reference.writes.len(),
                reference
                    .writes
                    .iter()
                    .map(|w| w.call.to_string().replace(name.as_str(), ""))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
    }
}

/// How controllers are killed.
struct Execution {
    grace: &'static str,
    signal: Signal,
    /// Whether the controller is down while the change is made.
    stopped: bool,
}

async fn assert_same_end(point: &Point, expected: &Outcome, (version, told): (u64, &[i32])) {
    let what = format!(
        "{:?} after a crash {:?} write {}",
        point.change, point.side, point.number
    );
    let reached = eventually(&what, SOON, async || {
        let (mut outcome, version) = look(&point.tenant).await;
        if point.change == Change::RecreateCompanion && outcome.newest == Some(Trigger::Restored) {
            // Of one that was deleted nobody knows what it held: the same key comes back as a new version.
            outcome.newest.clone_from(&expected.newest);
        }
        same(&outcome, expected).map(|()| version)
    })
    .await;
    assert!(reached >= version, "{what}: {reached} after {version}");
    eventually(&format!("{what}: its events"), SOON, async || {
        let now = counts(point.change, &point.tenant).await;
        let events = point.change.expected().events.iter().zip(told.iter().zip(&now));
        for (reason, (before, now)) in events {
            // A crash between an event and its status: the event is told twice.
            let (least, most) = (i32::from(!point.change.may_lose(*reason)), 2);
            if !(least..=most).contains(&(now - before)) {
                return Err(format!("{reason}: {before}, then {now}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_at_any_write_changes_nothing_in_the_end() {
    let gallows = Gallows(Bench::new().await);
    let of = |wanted: fn(Change) -> bool| -> Vec<Change> {
        Change::ALL.into_iter().filter(|change| wanted(*change)).collect()
    };
    let long = of(|change| matches!(change, Change::Deny | Change::AllowInTime));
    let at_start = of(|change| {
        matches!(
            change,
            Change::RotateNow | Change::Rotate | Change::Rename | Change::Settings
        )
    });
    let usual = of(|change| !matches!(change, Change::Deny | Change::AllowInTime | Change::RotateNow));
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let [short_grace, long_grace] = GRACE;
        for (changes, grace, stopped) in [
            (&long, long_grace, false),
            (&at_start, short_grace, true),
            (&usual, short_grace, false),
        ] {
            gallows
                .enumerate(
                    changes,
                    &Execution {
                        grace,
                        signal,
                        stopped,
                    },
                )
                .await;
        }
    }
}
