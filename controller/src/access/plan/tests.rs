//! Plans, without a cluster: a world in memory is observed, planned for, and changed as the plan says.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use llmwarden_proto::access::Trigger;
use llmwarden_proto::reason::ConditionType;
use secrecy::ExposeSecret;
use serde_json::json;

use super::world::{GRACE, World, parse, settings};
use super::*;
use crate::index::NamespaceLabels;

/// What changes for an access that was provisioned, and what has to come of it.
struct Case {
    name: &'static str,
    change: fn(&mut World),
    ready: (&'static str, Reason),
    events: &'static [Reason],
    /// Why the companion gets a new version, if it does.
    version: Option<Trigger>,
    secrets: &'static [&'static str],
}

/// A change that nothing comes of, unless said.
fn case(name: &'static str, change: fn(&mut World)) -> Case {
    Case {
        name,
        change,
        ready: ("True", Reason::Provisioned),
        events: &[],
        version: None,
        secrets: &["agent-key", "agent.llmwarden"],
    }
}

impl Case {
    fn version(self, why: Trigger) -> Self {
        Self {
            version: Some(why),
            ..self
        }
    }

    fn events(self, events: &'static [Reason]) -> Self {
        Self { events, ..self }
    }

    fn secrets(self, secrets: &'static [&'static str]) -> Self {
        Self { secrets, ..self }
    }

    fn refused(self, reason: Reason, events: &'static [Reason]) -> Self {
        Self {
            ready: ("False", reason),
            events,
            ..self
        }
    }
}

fn cases() -> Vec<Case> {
    [new_content(), damage(), names(), refusals()]
        .into_iter()
        .flatten()
        .collect()
}

fn new_content() -> Vec<Case> {
    vec![
        case("nothing", |_| {}),
        case("the master key changes", |world| world.set_key("sk-test-2"))
            .version(Trigger::MasterChanged)
            .events(&[Reason::Rotated]),
        case("the master key gets a line end", |world| {
            world.set_key("sk-test-1\n");
        }),
        case("fewer models are asked for", |world| {
            world.access.spec.models.push("claude-a".to_owned());
        })
        .version(Trigger::SettingsChanged)
        .events(&[Reason::SettingsChanged]),
        case("the provider moves", |world| {
            let endpoint = json!({ "baseURL": "https://gateway.example/v1" });
            world.provider().spec.endpoint = Some(parse(endpoint));
        })
        .version(Trigger::SettingsChanged)
        .events(&[Reason::SettingsChanged]),
    ]
}

fn damage() -> Vec<Case> {
    vec![
        case("the application's Secret is edited", |world| {
            world.remove_value("agent-key", "apiKey");
        })
        .events(&[Reason::Restored]),
        case("the application's Secret is deleted", |world| {
            world.remove_secret("agent-key");
        })
        .events(&[Reason::Restored]),
        case("the application's Secret loses its label", |world| {
            world.secret("agent-key").metadata.labels = None;
        })
        .events(&[Reason::Restored]),
        case("the application's Secret is made immutable", |world| {
            world.secret("agent-key").immutable = Some(true);
        })
        .events(&[Reason::ImmutableSecretRecreated]),
        case("the companion is edited", |world| {
            world.remove_value("agent.llmwarden", "apiKey");
        })
        .version(Trigger::Restored)
        .events(&[Reason::Restored]),
        case("the companion is deleted", |world| {
            world.remove_secret("agent.llmwarden");
        })
        .version(Trigger::Restored)
        .events(&[Reason::Restored]),
        case("both are deleted", |world| world.secrets.clear())
            .version(Trigger::Restored)
            .events(&[Reason::Restored]),
        case("both and the status are lost", |world| {
            world.secrets.clear();
            world.access.status = None;
        })
        .version(Trigger::Provisioned)
        .events(&[Reason::Provisioned]),
    ]
}

fn names() -> Vec<Case> {
    vec![
        case("another name", |world| world.rename("renamed"))
            .secrets(&["agent.llmwarden", "renamed"])
            .events(&[Reason::SecretRemoved]),
        case("the name of a foreign Secret", |world| {
            world.foreign("taken", &json!({}));
            world.rename("taken");
        })
        .refused(Reason::SecretConflict, &[Reason::SecretConflict])
        .secrets(&["agent-key", "agent.llmwarden", "taken"]),
        case("the name of a Secret that is handed over", |world| {
            world.foreign("taken", &json!({ "llmwarden.io/adopt": "agent" }));
            world.rename("taken");
        })
        .secrets(&["agent.llmwarden", "taken"])
        .events(&[Reason::Adopted, Reason::SecretRemoved]),
    ]
}

fn refusals() -> Vec<Case> {
    vec![
        case("the provider is deleted", |world| world.provider = None)
            .refused(Reason::ProviderMissing, &[Reason::ProviderMissing]),
        case("the master Secret is deleted", |world| world.master = None)
            .refused(Reason::MasterSecretMissing, &[Reason::MasterSecretMissing]),
        case("the master key is emptied", |world| world.set_key(""))
            .refused(Reason::MasterKeyEmpty, &[Reason::MasterKeyEmpty]),
        case("the selector can't be read", |world| {
            let expression = json!({ "key": "llm", "operator": "in", "values": ["yes"] });
            let selector = json!({ "matchExpressions": [expression] });
            world.provider().spec.namespace_selector = Some(parse(selector));
        })
        .refused(
            Reason::NamespaceSelectorInvalid,
            &[Reason::NamespaceSelectorInvalid],
        ),
        case("the namespace's label goes", |world| world.labels.clear())
            .refused(Reason::NamespaceNotAllowed, &[Reason::NamespaceNotAllowed]),
        case(
            "the namespace's label is gone for longer than the grace",
            |world| {
                world.labels.clear();
                world.settle();
                world.now += GRACE;
            },
        )
        .refused(Reason::NamespaceNotAllowed, &[Reason::Withdrawn])
        .version(Trigger::Withdrawn)
        .secrets(&["agent.llmwarden"]),
    ]
}

#[test]
fn what_follows_from_a_change() {
    for case in cases() {
        let mut world = World::settled();
        (case.change)(&mut world);
        let before = world.status();
        let (issued_before, last_rotation) = (before.credential_version, before.last_rotation);
        world.now += Duration::from_secs(1);
        let events = world.settle();
        assert_eq!(events, case.events, "{}", case.name);
        assert_eq!(
            world.ready(),
            (case.ready.0.to_owned(), case.ready.1.to_string()),
            "{}",
            case.name
        );
        assert_eq!(
            world.secrets.keys().collect::<Vec<_>>(),
            case.secrets,
            "{}",
            case.name
        );
        let status = world.status();
        match case.version {
            None => assert_eq!(status.credential_version, issued_before, "{}", case.name),
            Some(trigger) => {
                assert!(status.credential_version > issued_before, "{}", case.name);
                assert_eq!(status.history[0].trigger, trigger, "{}", case.name);
                let rotated = matches!(trigger, Trigger::MasterChanged | Trigger::Provisioned);
                assert_eq!(status.last_rotation != last_rotation, rotated, "{}", case.name);
            }
        }
        let version = status
            .credential_version
            .and_then(|version| u64::try_from(version).ok());
        assert_eq!(Some(world.document().version), version, "{}", case.name);
    }
}

/// What a crash must not change: everything but the uids and numbers of the writes.
fn outcome(world: &World) -> impl PartialEq + std::fmt::Debug + use<> {
    let data = |secret: &Secret| {
        let data = secret.data.clone().unwrap_or_default();
        let plain = data.into_iter().filter(|(name, _)| name != "live.json");
        plain.collect::<BTreeMap<_, _>>()
    };
    let secrets: BTreeMap<_, _> = world
        .secrets
        .iter()
        .map(|(name, secret)| (name.clone(), data(secret)))
        .collect();
    let conditions = world.status().conditions.into_iter();
    let conditions: Vec<_> = conditions.map(|c| (c.type_, c.status, c.reason)).collect();
    let state = world
        .secrets
        .get("agent.llmwarden")
        .map(|_| world.document().state);
    let newest = world
        .status()
        .history
        .first()
        .map(|newest| newest.trigger.clone());
    (secrets, conditions, state, newest)
}

#[test]
fn a_crash_between_any_two_writes_changes_nothing_in_the_end() {
    let first = case("an access is created", |world| *world = World::new());
    let mut crashes = 0;
    for case in cases().into_iter().chain([first]) {
        let mut start = World::settled();
        (case.change)(&mut start);
        let mut uninterrupted = start.clone();
        uninterrupted.settle();
        for passes in 0..2 {
            for steps in 0.. {
                let mut world = start.clone();
                for _ in 0..passes {
                    let plan = world.plan();
                    world.apply(&plan, usize::MAX);
                }
                let versions_before = world.status().credential_version;
                let plan = world.plan();
                if world.apply(&plan, steps) {
                    break;
                }
                crashes += 1;
                world.now += Duration::from_secs(1);
                world.settle();
                assert_eq!(
                    outcome(&world),
                    outcome(&uninterrupted),
                    "{} after {steps} writes",
                    case.name
                );
                assert!(
                    world.status().credential_version >= versions_before,
                    "{}",
                    case.name
                );
            }
        }
    }
    assert!(crashes > 50, "{crashes} crash points");
}

#[test]
fn versions_grow_whatever_was_written_or_recorded() {
    type Change = fn(&mut World, i64);
    let last = World::settled().document().version;
    let far = last + 1_000_000_000;
    let signed = i64::try_from(far).expect("fits");
    let cases: [(&str, Change); 4] = [
        ("recorded in the status", |world, version| {
            world.secrets.clear();
            let status = world.access.status.as_mut().expect("a status");
            status.credential_version = Some(version);
        }),
        ("written in the companion", |world, version| {
            let mut document = world.document();
            document.version = u64::try_from(version).expect("positive");
            let data = world
                .secrets
                .get_mut("agent.llmwarden")
                .and_then(|secret| secret.data.as_mut())
                .expect("data");
            data.get_mut("live.json").expect("a document").0 = serde_json::to_vec(&document).expect("JSON");
            data.get_mut("apiKey").expect("a key").0 = b"edited".to_vec();
        }),
        ("recorded, and an older one put back", |world, version| {
            world.access.status.as_mut().expect("a status").credential_version = Some(version);
        }),
        ("recorded, and the clock went back", |world, version| {
            world.access.status.as_mut().expect("a status").credential_version = Some(version);
            world.secrets.clear();
            world.now = Timestamp::UNIX_EPOCH;
        }),
    ];
    for (name, change) in cases {
        let mut world = World::settled();
        change(&mut world, signed);
        world.settle();
        assert!(world.document().version > far, "{name}");
    }
}

#[test]
fn a_strangers_version_near_the_end_of_numbers_stops_no_rotation() {
    for strange in [
        MAX_VERSION + 1,
        i64::MAX.unsigned_abs() - 1,
        i64::MAX.unsigned_abs(),
        u64::MAX,
    ] {
        let mut world = World::settled();
        let mut document = world.document();
        document.version = strange;
        let data = world.secret("agent.llmwarden").data.as_mut().expect("data");
        data.get_mut("live.json").expect("a document").0 = serde_json::to_vec(&document).expect("JSON");
        if let Ok(recorded) = i64::try_from(strange) {
            world.access.status.as_mut().expect("a status").credential_version = Some(recorded);
        }
        world.settle();
        let restored = world.document().version;
        assert!(restored <= MAX_VERSION, "{strange}");
        world.set_key("sk-test-2");
        world.settle();
        assert_eq!(
            world.value("agent.llmwarden", "apiKey").as_deref(),
            Some("sk-test-2")
        );
        assert!(world.document().version > restored, "{strange}");
    }
}

#[test]
fn a_key_that_was_withdrawn_comes_back_as_a_new_version() {
    let mut world = World::settled();
    world.labels.clear();
    world.settle();
    let announced = world.status().withdraw_at.expect("announced");
    assert_eq!(announced.0, world.now + GRACE);
    assert_eq!(world.value("agent-key", "apiKey").as_deref(), Some("sk-test-1"));

    // Allowed again in time: nothing happened.
    let labels: NamespaceLabels = [("llm".to_owned(), "yes".to_owned())].into();
    let mut in_time = world.clone();
    in_time.labels.clone_from(&labels);
    in_time.settle();
    assert_eq!(in_time.status().withdraw_at, None);
    assert_eq!(in_time.document(), world.document());

    world.now += GRACE;
    world.settle();
    let withdrawn = world.document();
    assert_eq!(withdrawn.state, State::Withdrawn);
    assert!(
        withdrawn
            .reason
            .is_some_and(|reason| reason.contains("namespace team"))
    );
    assert_eq!(world.value("agent.llmwarden", "apiKey"), None);
    assert_eq!(world.status().secret_ref, None);

    world.labels = labels;
    world.settle();
    assert_eq!(world.ready().0, "True");
    assert!(world.document().version > withdrawn.version);
    assert_eq!(world.value("agent-key", "apiKey").as_deref(), Some("sk-test-1"));
}

#[test]
fn a_grace_is_never_shorter_than_asked_for() {
    let announced = |now: &str, grace: Duration| {
        let mut world = World::settled();
        world.labels.clear();
        world.now = now.parse().expect("a time");
        let settings = Settings {
            denial_grace: grace,
            ..settings()
        };
        let plan = plan(&world.observe(), &settings).expect("a plan");
        let at = plan.status.withdraw_at.expect("announced").0;
        // It is looked at when it is due, and not before.
        assert_eq!(plan.look_again, Some(until(world.now, at)));
        at.to_string()
    };
    for (now, grace, expected) in [
        (
            "2026-06-01T12:00:00Z",
            Duration::from_secs(1),
            "2026-06-01T12:00:01Z",
        ),
        (
            "2026-06-01T12:00:00.7Z",
            Duration::from_secs(1),
            "2026-06-01T12:00:02Z",
        ),
        (
            "2026-06-01T12:00:00.7Z",
            Duration::from_millis(300),
            "2026-06-01T12:00:01Z",
        ),
        ("2026-06-01T12:00:00.7Z", Duration::ZERO, "2026-06-01T12:00:00Z"),
        ("2026-06-01T12:00:00.7Z", Duration::MAX, "9999-12-30T22:00:00Z"),
    ] {
        assert_eq!(announced(now, grace), expected, "{now} and {grace:?}");
    }
}

#[test]
fn in_proxy_mode_applications_hold_a_placeholder_that_never_changes() {
    let mut world = World::new();
    world.access.spec.injection.proxy = Some(parse(json!({})));
    world.settle();
    let placeholder = settings().instance.placeholder("team", "agent");
    let before = world.value("agent-key", "apiKey");
    assert_eq!(before.as_deref(), Some(placeholder.expose_secret()));
    assert_eq!(
        world.value("agent.llmwarden", "apiKey").as_deref(),
        Some("sk-test-1")
    );
    world.set_key("sk-test-2");
    world.settle();
    assert_eq!(world.value("agent-key", "apiKey"), before);
    assert_eq!(
        world.value("agent.llmwarden", "apiKey").as_deref(),
        Some("sk-test-2")
    );

    // Withdrawn, agents that reference the Secret can go on starting.
    world.labels.clear();
    world.settle();
    world.now += GRACE;
    world.settle();
    assert_eq!(world.value("agent-key", "apiKey"), before);
    assert_eq!(world.document().state, State::Withdrawn);
    world.secrets.clear();
    world.access.status = None;
    world.labels.insert("llm".to_owned(), "yes".to_owned());
    world.settle();
    assert_eq!(world.value("agent-key", "apiKey"), before);
}

#[test]
fn the_oldest_claim_gets_a_name_that_nobody_has() {
    let (older, younger) = ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z");
    let same = "2026-01-02T00:00:00Z";
    for (rival, created, wins) in [
        ("z", older, false),
        ("a", younger, true),
        ("a", same, false),
        ("z", same, true),
    ] {
        let mut world = World::new();
        world.others = vec![World::claim(rival, "agent-key", created)];
        world.settle();
        assert_eq!(world.ready().0 == "True", wins, "{rival} {created}");
        // The present owner keeps it, however old the others are.
        let mut world = World::settled();
        world.others = vec![World::claim(rival, "agent-key", created)];
        assert!(world.settle().is_empty(), "{rival} {created}");
    }
}

#[test]
fn an_interval_that_passes_is_said_once_and_a_new_key_ends_it() {
    let mut world = World::new();
    let rotation = json!({ "enabled": true, "interval": "30d" });
    let auth = world.provider().spec.auth.api_key.as_mut().expect("an API key");
    auth.rotation = Some(parse(rotation));
    world.access.spec.rotation = Some(parse(json!({ "interval": "12h" })));
    world.settle();
    let made = world.now;
    let half_a_day = Duration::from_hours(12);
    assert_eq!(world.plan().look_again, Some(half_a_day));
    assert_eq!(
        world.status().next_rotation.map(|next| next.0),
        Some(made + half_a_day)
    );

    world.now += half_a_day;
    assert_eq!(world.settle(), [Reason::RotationOverdue]);
    world.now += half_a_day;
    assert_eq!(world.settle(), []);
    assert_eq!(world.ready().0, "True");
    assert_eq!(world.value("agent-key", "apiKey").as_deref(), Some("sk-test-1"));

    world.set_key("sk-test-2");
    assert_eq!(world.settle(), [Reason::Rotated]);
    assert_eq!(
        world.status().next_rotation.map(|next| next.0),
        Some(world.now + half_a_day)
    );
}

#[test]
fn a_rotation_that_is_asked_for_is_handled_once() {
    let mut world = World::settled();
    let annotations = [("llmwarden.io/rotate".to_owned(), "now".to_owned())];
    world.access.metadata.annotations = Some(annotations.into());
    let plan = world.plan();
    assert!(plan.rotation_handled && plan.writes.is_empty());
    assert_eq!(
        plan.events.iter().map(|event| event.reason).collect::<Vec<_>>(),
        [Reason::NothingToRotate]
    );
    world.set_key("sk-test-2");
    let plan = world.plan();
    assert!(plan.rotation_handled);
    assert_eq!(
        plan.events.iter().map(|event| event.reason).collect::<Vec<_>>(),
        [Reason::Rotated]
    );
    world.access.metadata.annotations = Some([("llmwarden.io/rotate".to_owned(), "later".to_owned())].into());
    assert!(!world.plan().rotation_handled);
}

#[test]
fn nothing_is_decided_of_what_is_not_known_or_goes_away() {
    let mut deleted = World::settled();
    deleted.access.metadata.deletion_timestamp = Some(whole_seconds(deleted.now));
    deleted.labels.clear();
    assert!(plan(&deleted.observe(), &settings()).is_none());
    let mut unseen = World::settled().observe();
    unseen.namespace = None;
    assert!(plan(&unseen, &settings()).is_none());
}

#[test]
fn plans_do_not_show_keys() {
    let plan = World::new().plan();
    assert_eq!(plan.writes.len(), 2);
    assert!(!format!("{plan:?}").contains("sk-test"), "{plan:?}");
}

#[test]
fn a_withdrawal_that_is_refused_stays_due_and_is_said_once() {
    let mut world = World::settled();
    world.labels.clear();
    world.settle();
    world.now += GRACE;
    let due = world.status().withdraw_at;
    let refusal = "the API server refused to write Secret agent.llmwarden: quota";
    let plan = refused(&world.observe(), &settings(), refusal);
    assert_eq!(plan.status.withdraw_at, due);
    assert_eq!(
        plan.events.iter().map(|event| event.reason).collect::<Vec<_>>(),
        [Reason::WriteRefused]
    );
    assert!(plan.events[0].message.contains("namespace team") && plan.events[0].message.contains("quota"));
    world.access.status = Some(plan.status);
    let again = refused(&world.observe(), &settings(), refusal);
    assert!(again.events.is_empty());
    assert_eq!(world.access.status.as_ref(), Some(&again.status));
    world.settle();
    assert_eq!(world.document().state, State::Withdrawn);
}

#[test]
fn a_strangers_companion_does_not_keep_a_denied_key() {
    let mut world = World::settled();
    world.remove_secret("agent.llmwarden");
    world.foreign("agent.llmwarden", &json!({}));
    world.labels.clear();
    world.settle();
    world.now += GRACE;
    assert_eq!(world.settle(), [Reason::Withdrawn]);
    assert_eq!(world.secrets.keys().collect::<Vec<_>>(), ["agent.llmwarden"]);
    assert_eq!(world.value("agent.llmwarden", "theirs").as_deref(), Some("x"));
    let status = world.status();
    assert_eq!(status.history[0].trigger, Trigger::Withdrawn);
    let ready = conditions::find(&status.conditions, ConditionType::Ready).expect("Ready");
    assert!(
        ready.message.contains("sidecars are not told"),
        "{}",
        ready.message
    );
}

#[test]
fn what_a_finalizer_keeps_does_not_keep_a_denied_key() {
    let mut world = World::settled();
    world.secret("agent-key").metadata.finalizers = Some(vec!["example.com/theirs".to_owned()]);
    world.labels.clear();
    world.settle();
    world.now += GRACE;
    let plan = world.plan();
    world.apply(&plan, usize::MAX);
    assert_eq!(world.value("agent-key", "apiKey"), None);
    world.secret("agent-key").metadata.deletion_timestamp = Some(whole_seconds(world.now));
    assert!(
        !world
            .plan()
            .writes
            .iter()
            .any(|write| matches!(write, Write::Delete(_)))
    );
    // Allowed again, the name is waited for.
    world.labels.insert("llm".to_owned(), "yes".to_owned());
    world.settle();
    assert_eq!(world.ready(), ("False".to_owned(), "SecretConflict".to_owned()));
}

#[test]
fn a_key_that_is_held_back_grows_old_and_is_missed_when_it_is_missing() {
    let mut world = World::new();
    let rotation = json!({ "enabled": true, "interval": "12h" });
    let auth = world.provider().spec.auth.api_key.as_mut().expect("an API key");
    auth.rotation = Some(parse(rotation));
    world.settle();
    world.master = None;
    world.settle();
    world.now += Duration::from_hours(12);
    assert_eq!(world.settle(), [Reason::RotationOverdue]);

    let provisioned = |world: &World| {
        let status = world.status();
        let condition = conditions::find(&status.conditions, ConditionType::CredentialProvisioned);
        condition.map(|condition| condition.status.clone())
    };
    assert_eq!(provisioned(&world).as_deref(), Some("True"));
    world.remove_secret("agent-key");
    world.settle();
    assert_eq!(provisioned(&world).as_deref(), Some("False"));
}

#[test]
fn a_history_of_a_later_version_is_read_and_kept() {
    let mut world = World::settled();
    let mut status = serde_json::to_value(world.status()).expect("JSON");
    status["history"][0]["trigger"] = json!("SomethingNew");
    world.access.status = Some(parse(status));
    world.settle();
    let newest = &world.status().history[0];
    assert_eq!(newest.trigger, Trigger::Other("SomethingNew".to_owned()));
    assert_eq!(
        serde_json::to_value(newest).expect("JSON")["trigger"],
        json!("SomethingNew")
    );
}
