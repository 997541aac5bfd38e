//! What the status says of those who use a key: pods and what is promised to them.

use jiff::SignedDuration;
use llmwarden_proto::provider::ProxyPolicy;
use llmwarden_proto::reason::ConditionType;
use serde_json::json;

use super::world::{GRACE, World, parse};
use super::*;
use crate::access::pods::{InjectedPod, Pods};
use crate::conditions::Truth;
use crate::index::pod::Told;

/// A pod whose sidecar says that it has this version, and lacks these features.
fn pod(name: &str, version: i64, lacking: &[&str]) -> InjectedPod {
    let version = u64::try_from(version).ok();
    InjectedPod {
        name: name.to_owned(),
        told: Some(Told {
            state: "active".to_owned(),
            version,
            file_version: version,
            lacking: lacking.iter().map(ToString::to_string).collect(),
        }),
        ..InjectedPod::default()
    }
}

#[test]
fn the_status_counts_the_pods_and_names_those_that_need_something() {
    type Change = fn(&mut World, i64);
    type Expected<'a> = (&'a str, &'a [Reason], Option<(i64, i64)>);
    let cases: [(&str, Change, Expected); 6] = [
        ("none", |_, _| {}, ("NoPodMatched", &[], None)),
        (
            "some that have it, and some that do not yet",
            |world, version| {
                let silent = InjectedPod {
                    told: None,
                    ..pod("c", version, &[])
                };
                world.pods.injected = vec![pod("a", version, &[]), pod("b", version - 1, &[]), silent];
            },
            ("PodsInjected", &[], Some((1, 3))),
        ),
        (
            "one without the sidecar",
            |world, _| world.pods.missing = vec![("slipped".to_owned(), None)],
            ("PodsMissingInjection", &[Reason::PodsMissingInjection], None),
        ),
        (
            "an old sidecar",
            |world, version| {
                world.pods.injected = vec![pod("old", version, &["telepathy"])];
            },
            ("PodsInjected", &[Reason::SidecarLacksFeatures], Some((1, 1))),
        ),
        (
            "one that holds a key that is gone",
            |world, version| {
                world.labels.clear();
                world.settle();
                world.now += GRACE;
                world.settle();
                world.pods.injected = vec![pod("a", version, &[])];
            },
            ("PodsInjected", &[], Some((0, 1))),
        ),
        (
            "an access that never had a key",
            |world, version| {
                *world = World::new();
                world.master = None;
                world.settle();
                world.pods.injected = vec![pod("a", version, &[])];
            },
            ("PodsInjected", &[], Some((0, 1))),
        ),
    ];
    for (name, change, (ready, events, count)) in cases {
        let mut world = World::settled();
        let version = world.status().credential_version.expect("a version");
        change(&mut world, version);
        assert_eq!(world.settle(), events, "{name}");
        let status = world.status();
        let reason = conditions::find(&status.conditions, ConditionType::InjectionReady);
        assert_eq!(reason.expect("a condition").reason, ready, "{name}");
        let pods = status
            .rotation
            .map(|rotation| (rotation.pods.delivered, rotation.pods.total));
        assert_eq!(pods, count, "{name}");
        let outdated = conditions::find(&status.conditions, ConditionType::SidecarOutdated);
        assert_eq!(
            outdated.is_some(),
            events.contains(&Reason::SidecarLacksFeatures),
            "{name}"
        );

        world.pods = Pods::default();
        world.settle();
        let status = world.status();
        assert!(conditions::is(
            &status.conditions,
            ConditionType::InjectionReady,
            Truth::False,
            Reason::NoPodMatched
        ));
        assert!(conditions::find(&status.conditions, ConditionType::SidecarOutdated).is_none());
        assert_eq!(status.rotation, None);
    }
}

#[test]
fn the_status_promises_what_holds() {
    type Change = fn(&mut World);
    type Promise = Option<(&'static str, Reason)>;
    let reading = |change: fn(&mut InjectedPod)| {
        let mut reading = pod("a", 1, &[]);
        reading.reads_secret = true;
        change(&mut reading);
        vec![reading]
    };
    let proxied: Change = |world| world.access.spec.injection.proxy = Some(parse(json!({})));
    let required: Change = |world| world.provider().spec.proxy = ProxyPolicy::Required;
    let with_env: Change = |world| {
        world.access.spec.injection.env = parse(json!([{ "name": "KEY", "secretKey": "apiKey" }]));
    };
    let kagents = reading(|pod| pod.hashes_secret = true);
    let not_enforced = Some(("False", Reason::NotEnforced));
    let cases: [(&str, Change, Vec<InjectedPod>, Promise, Promise); 9] = [
        ("nobody", |_| {}, vec![], None, not_enforced),
        (
            "who reads the file",
            |_| {},
            vec![pod("a", 1, &[])],
            Some(("True", Reason::DeliveredLive)),
            not_enforced,
        ),
        (
            "who will read the environment",
            with_env,
            vec![],
            Some(("False", Reason::KeyInEnvironment)),
            not_enforced,
        ),
        (
            "who reads the environment",
            |_| {},
            reading(|_| {}),
            Some(("False", Reason::KeyInEnvironment)),
            not_enforced,
        ),
        (
            "kagent",
            with_env,
            kagents.clone(),
            Some(("False", Reason::KagentHashesSecret)),
            not_enforced,
        ),
        (
            "kagent, through the proxy",
            proxied,
            reading(|pod| (pod.hashes_secret, pod.proxied) = (true, true)),
            Some(("True", Reason::ThroughProxy)),
            Some(("True", Reason::EnforcedByProxy)),
        ),
        (
            "kagent, as the provider requires",
            required,
            vec![],
            Some(("True", Reason::ThroughProxy)),
            Some(("True", Reason::EnforcedByProxy)),
        ),
        (
            "a pod from before the proxy",
            proxied,
            kagents,
            Some(("False", Reason::KeyInEnvironment)),
            not_enforced,
        ),
        (
            "no list of models",
            |world| {
                world.provider().spec.proxy = ProxyPolicy::Required;
                world.provider().spec.allowed_models.clear();
            },
            vec![],
            Some(("True", Reason::ThroughProxy)),
            None,
        ),
    ];
    for (name, change, pods, live, models) in cases {
        let mut world = World::settled();
        change(&mut world);
        world.pods.injected = pods;
        world.settle();
        let status = world.status();
        for (kind, expected) in [
            (ConditionType::LiveRotation, live),
            (ConditionType::ModelsEnforced, models),
        ] {
            let seen = conditions::find(&status.conditions, kind);
            let seen = seen.map(|condition| (condition.status.as_str(), condition.reason.as_str()));
            assert_eq!(
                seen,
                expected.map(|(truth, reason)| (truth, reason.as_str())),
                "{name}: {kind}"
            );
        }
    }
}

#[test]
fn a_pod_that_lets_its_agent_into_the_sidecar_is_said_once() {
    let mut world = World::settled();
    world.provider().spec.proxy = ProxyPolicy::Required;
    world.settle();
    let exposed = |proxied| InjectedPod {
        proxied,
        exposure: Some("container skills is privileged".to_owned()),
        ..pod("a", 1, &[])
    };
    world.pods.injected = vec![exposed(false)];
    assert_eq!(world.settle(), []);
    world.pods.injected = vec![exposed(true)];
    assert_eq!(world.settle(), [Reason::KeyNotIsolated]);
    let status = world.status();
    let ready = conditions::find(&status.conditions, ConditionType::InjectionReady).expect("a condition");
    assert_eq!(ready.status, "True");
    assert!(
        ready.message.ends_with("agent: container skills is privileged"),
        "{}",
        ready.message
    );
}

#[test]
fn that_pods_must_restart_is_said_until_they_did() {
    let mut world = World::settled();
    world.secret("agent-key").immutable = Some(true);
    let recreated = |world: &World| {
        let status = world.status();
        let live = conditions::find(&status.conditions, ConditionType::LiveRotation);
        live.is_some_and(|live| live.reason == Reason::ImmutableSecretRecreated.as_str())
    };
    let plan = world.plan();
    world.apply(&plan, usize::MAX);
    assert!(recreated(&world), "announced");
    let old = |world: &World, minutes: i64| InjectedPod {
        created: Some(world.now - SignedDuration::from_mins(minutes)),
        ..pod("a", 1, &[])
    };
    world.pods.injected = vec![old(&world, 1)];
    let plan = world.plan();
    world.apply(&plan, usize::MAX);
    let created = whole_seconds(world.now);
    world.secret("agent-key").metadata.creation_timestamp = Some(created);
    world.settle();
    world.now += Duration::from_hours(2);
    world.settle();
    assert!(recreated(&world), "the pod is older");
    world.pods.injected = vec![old(&world, 30)];
    world.settle();
    assert!(!recreated(&world));
}
