//! Several replicas of the controller: one writes, another one goes on when that is gone.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use llmwarden_proto::access::Trigger;
use llmwarden_proto::names::API_KEY;
use llmwarden_proto::reason::Reason;
use llmwarden_tests::installation::{LEADS, SYSTEM};
use llmwarden_tests::{Installation, Process, Signal, eventually};
use serde_json::json;

use crate::support::{SOON, Tenant, value};

const KEY: &str = "sk-test-replicas";

/// An installation with a second replica that has listed everything, and a provisioned access.
async fn two() -> (Installation, Process, Tenant) {
    let installation = Installation::start(&[]).await.unwrap();
    let second = installation.start_replica("second").unwrap();
    let listed = |line: &str| line.contains("everything is listed");
    second.await_log(SOON, listed).await.unwrap();
    let tenant = Tenant::new(&installation, KEY).await;
    tenant.create_access("agent", json!({})).await;
    tenant.await_ready("agent").await;
    assert!(!second.log().contains(LEADS), "two lead");
    (installation, second, tenant)
}

async fn holder(installation: &Installation) -> Option<String> {
    let leases = Api::<Lease>::namespaced(installation.client(), SYSTEM);
    let lease = leases.get("llmwarden-controller").await.unwrap();
    lease.spec?.holder_identity
}

/// Changes the master key and waits until it is delivered and told.
async fn rotate(tenant: &Tenant, key: &str, rotations: i32) {
    tenant.set_master(key).await;
    eventually("the new key, told", SOON, async || {
        let secret = tenant.secret("agent-key").await;
        let told = tenant.occurrences("agent", Reason::Rotated).await;
        value(&secret, API_KEY) == key && told == rotations
    })
    .await;
}

async fn assert_rotated_once_each(tenant: &Tenant, rotations: usize) {
    tenant.touch("agent").await;
    let history = tenant.access("agent").await.status.unwrap().history;
    let triggers: Vec<_> = history.iter().map(|entry| entry.trigger.clone()).collect();
    let mut expected = vec![Trigger::MasterChanged; rotations];
    expected.push(Trigger::Provisioned);
    assert_eq!(triggers, expected);
    assert!(history.is_sorted_by(|newer, older| newer.version > older.version));
    let told = tenant.occurrences("agent", Reason::Rotated).await;
    assert_eq!(usize::try_from(told).unwrap(), rotations);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_another_one_goes_on() {
    let (installation, second, tenant) = two().await;
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    rotate(&tenant, "sk-test-replicas-2", 1).await;
    assert!(second.log().contains(LEADS));
    assert_eq!(holder(&installation).await.as_deref(), Some("second"));
    assert_rotated_once_each(&tenant, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_gives_the_lease_back() {
    let (installation, second, _tenant) = two().await;
    let status = installation.stop_controller(Signal::SIGTERM).await.unwrap();
    assert!(status.success(), "{status}");
    second.await_log(SOON, |line| line.contains(LEADS)).await.unwrap();
    second.signal(Signal::SIGTERM).unwrap();
    assert!(second.wait(SOON).await.unwrap().success());
    assert_eq!(holder(&installation).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_leader_that_wakes_up_does_no_harm() {
    let (installation, second, tenant) = two().await;
    installation.signal_controller(Signal::SIGSTOP).unwrap();
    rotate(&tenant, "sk-test-replicas-2", 1).await;
    assert!(second.log().contains(LEADS));
    installation.signal_controller(Signal::SIGCONT).unwrap();
    eventually("the end of the old tenure", SOON, async || {
        installation.controller_log().contains("lost the Lease")
    })
    .await;
    rotate(&tenant, "sk-test-replicas-3", 2).await;
    assert_eq!(holder(&installation).await.as_deref(), Some("second"));
    assert_rotated_once_each(&tenant, 2).await;
}
