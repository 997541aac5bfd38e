//! Keys that can be recognised go through everything at `trace`, and are then looked for everywhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use llmwarden_proto::names::{self, ADOPT_ANNOTATION, API_KEY};
use llmwarden_proto::reason::{ConditionType, Reason};
use llmwarden_tests::installation::{ENABLED_LABEL, SYSTEM};
use llmwarden_tests::sidecar::Options;
use llmwarden_tests::{Installation, Sidecar, Signal, eventually};
use serde_json::{Value, json};

use crate::sidecar::{assert_key, await_key, await_withdrawn};
use crate::support::{SOON, Tenant, create, object, patch};

/// The key that an access has.
const LIVE: &str = "sk-test-canary-live-Zq3vT8xK1mWb";
/// The one that it had before.
const REPLACED: &str = "sk-test-canary-replaced-hY6nR2cJ9pLd";
/// Of an access that is no longer allowed.
const WITHDRAWN: &str = "sk-test-canary-withdrawn-Gf5sD7uE4oXa";
/// On the second line of a master key, so that the whole is none.
const INVALID: &str = "sk-test-canary-invalid-Bk8wQ1zM6tVi";
/// In a Secret that is somebody else's.
const FOREIGN: &str = "sk-test-canary-foreign-Nr4jC9yH2gPe";
/// In a Secret that was handed over, and replaced there.
const ADOPTED: &str = "sk-test-canary-adopted-Ul7aS3fO5xKq";
/// What a client sends that has the wrong idea.
const GUESSED: &str = "sk-test-canary-guessed-Wd2eT6bI8vZm";

const CANARIES: [&str; 7] = [LIVE, REPLACED, WITHDRAWN, INVALID, FOREIGN, ADOPTED, GUESSED];

/// Every way in which a text could stand in another one: as it is, in hexadecimal, and in base64, where it looks
/// different with each number of bytes before it.
fn forms(text: &str) -> Vec<String> {
    let mut hex = String::new();
    for byte in text.bytes() {
        write!(hex, "{byte:02x}").unwrap();
    }
    let mut forms = vec![text.to_owned(), hex];
    for (before, mixed) in [("", 0), ("x", 2), ("xx", 3)] {
        let whole = base64(&format!("{before}{text}"));
        // The last group may be mixed with what follows.
        forms.push(whole[mixed..whole.len() - 4].to_owned());
    }
    forms
}

fn base64(text: &str) -> String {
    let encoded = serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap();
    encoded.as_str().unwrap().to_owned()
}

#[test]
fn a_canary_is_recognised_in_every_form() {
    for (before, after) in [("", ""), ("a", "b"), ("ab", "cde"), ("{\"key\":\"", "\"}")] {
        let text = base64(&format!("{before}{LIVE}{after}"));
        let found = forms(LIVE).iter().any(|form| text.contains(form));
        assert!(found, "{before:?}, {after:?}");
        assert!(!forms(REPLACED).iter().any(|form| text.contains(form)));
    }
}

/// Everything that can be read, with the name of where.
#[derive(Default)]
struct Haystack(Vec<(String, String)>);

impl Haystack {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        let (place, text) = (place.into(), text.into());
        assert!(!text.is_empty(), "nothing to search: {place}");
        self.0.push((place, text));
    }

    /// Each place that holds a canary, with the canary.
    fn search(&self, canaries: &[&str]) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for canary in canaries {
            let forms = forms(canary);
            for (place, text) in &self.0 {
                if forms.iter().any(|form| text.contains(form)) {
                    found.insert(((*canary).to_owned(), place.clone()));
                }
            }
        }
        found
    }

    /// The arguments and the environment of a process.
    fn add_process(&mut self, name: &str, pid: u32) {
        let read = |part: &str| std::fs::read(format!("/proc/{pid}/{part}"));
        let arguments = read("cmdline").unwrap();
        self.add(format!("{name}: arguments"), String::from_utf8_lossy(&arguments));
        match read("environ") {
            Ok(variables) => self.add(
                format!("{name}: environment"),
                String::from_utf8_lossy(&variables),
            ),
            // Of an undumpable process root alone may read it.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }

    /// All files below a directory. Links are passed over: they stay within it.
    fn add_files(&mut self, root: &Path, directory: &Path) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if kind.is_dir() {
                self.add_files(root, &path);
            } else if kind.is_file() {
                let content = std::fs::read(&path).unwrap();
                self.add(
                    format!("file {name}"),
                    format!("{name}\n{}", String::from_utf8_lossy(&content)),
                );
            }
        }
    }

    /// All logs in a directory.
    fn add_logs(&mut self, directory: &Path) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read(&path).unwrap();
                self.add(path.display().to_string(), String::from_utf8_lossy(&text));
            }
        }
    }

    /// All objects of the kinds that llmwarden reads or writes.
    async fn add_objects(&mut self, installation: &Installation) {
        let kinds = "llmaccesses,llmproviders,events.v1.events.k8s.io,secrets,configmaps,namespaces";
        let arguments = format!("get {kinds} --all-namespaces --show-managed-fields -o json");
        let text = installation.run_kubectl(&arguments).await.unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        for object in list["items"].as_array().unwrap() {
            let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let kind = object["kind"].as_str().unwrap();
            self.add(
                format!("{kind} {}/{}", of("namespace"), of("name")),
                object.to_string(),
            );
        }
    }

    fn has(&self, place: &str) -> bool {
        self.0.iter().any(|(known, _)| known.starts_with(place))
    }
}

/// One installation, with what the canaries go through.
struct Flight {
    installation: Installation,
    tenant: Tenant,
    other: Tenant,
    invalid: Tenant,
}

impl Flight {
    async fn start() -> Self {
        let flags = ["--denial-grace=0"];
        let installation = Installation::start_logging(&flags, "trace").await.unwrap();
        let tenant = Tenant::new(&installation, REPLACED).await;
        let other = Tenant::new(&installation, WITHDRAWN).await;
        let invalid = Tenant::names(&installation);
        Self {
            installation,
            tenant,
            other,
            invalid,
        }
    }

    async fn start_sidecar(&self) -> Sidecar {
        let source = |tenant: &Tenant, access: &str| {
            let companion = names::companion(access);
            format!("{access}=kube:{}/{companion}", tenant.namespace)
        };
        let name = "canary-sidecar";
        let account = self.installation.account(SYSTEM, name).await.unwrap();
        self.installation.make_admin(SYSTEM, name).await.unwrap();
        let options = Options {
            account: Some(account),
            log_level: "trace".to_owned(),
            ..Options::new([source(&self.tenant, "agent"), source(&self.other, "other")])
        };
        Sidecar::start(options).await.unwrap()
    }

    async fn provision_and_rotate(&self, sidecar: &Sidecar) {
        self.tenant.create_access("agent", json!({})).await;
        self.other.create_access("other", json!({})).await;
        await_key(sidecar, "agent", REPLACED).await;
        await_key(sidecar, "other", WITHDRAWN).await;
        self.tenant.set_master(LIVE).await;
        await_key(sidecar, "agent", LIVE).await;
        await_event(&self.tenant, "agent", Reason::Rotated).await;
    }

    async fn withdraw(&self, sidecar: &Sidecar) {
        let labels = json!({ "metadata": { "labels": { ENABLED_LABEL: null } } });
        patch(&self.other.namespaces(), &self.other.namespace, labels).await;
        await_withdrawn(sidecar, "other", &self.other.namespace).await;
        await_event(&self.other, "other", Reason::Withdrawn).await;
    }

    async fn fail(&self) {
        let tenant = &self.invalid;
        tenant.create_namespace(true).await;
        let key = format!("sk-test\n{INVALID}");
        tenant.create_master(json!({ "api-key": key })).await;
        tenant.create_provider(json!({})).await;
        tenant.create_access("agent", json!({})).await;
        tenant.await_refusal("agent", Reason::MasterKeyInvalid).await;
        await_event(tenant, "agent", Reason::MasterKeyInvalid).await;
        eventually("the provider's condition", SOON, async || {
            let provider = tenant.providers().get(&tenant.provider).await.unwrap();
            let mut conditions = provider.status.unwrap_or_default().conditions.into_iter();
            conditions.any(|condition| {
                condition.type_ == ConditionType::Ready.as_str()
                    && condition.reason == Reason::MasterKeyInvalid.as_str()
            })
        })
        .await;
    }

    async fn conflict(&self) {
        for (access, key, immutable) in [("taken", FOREIGN, true), ("handed-over", ADOPTED, false)] {
            let secret: Secret = object(json!({
                "metadata": { "name": format!("{access}-key"), "annotations": { ADOPT_ANNOTATION: access } },
                "stringData": { "apiKey": key, "other": key },
                "immutable": immutable,
            }));
            create(&self.tenant.secrets(), &secret).await;
            self.tenant.create_access(access, json!({})).await;
        }
        self.tenant.await_refusal("taken", Reason::SecretConflict).await;
        await_event(&self.tenant, "taken", Reason::SecretConflict).await;
        self.tenant.await_ready("handed-over").await;
        await_event(&self.tenant, "handed-over", Reason::Adopted).await;
    }
}

async fn await_event(tenant: &Tenant, access: &str, reason: Reason) {
    let what = format!("the event {reason:?} of {access}");
    eventually(&what, SOON, async || tenant.occurrences(access, reason).await > 0).await;
}

/// Asks as clients do that have the wrong idea, and returns the answers.
async fn ask_badly(sidecar: &Sidecar) -> String {
    let [host, token] = sidecar.headers().unwrap();
    let mut answers = String::new();
    for key in [LIVE, GUESSED] {
        let bearer = format!("Authorization: Bearer {key}");
        let own_header = format!("X-Api-Key: {key}");
        let forwarded = format!("X-Forwarded-For: {key}");
        let cookie = format!("Cookie: {key}");
        let of_key = format!("GET /v1/keys/agent/{key}");
        let of_access = format!("GET /v1/keys/{key}");
        let queried = format!("GET /v1/keys/agent?key={key}");
        let method = format!("{key} /v1/keys/agent/apiKey");
        let unknown_tag = format!("If-None-Match: \"{key}\"");
        let honest = "GET /v1/keys/agent/apiKey";
        for (line, headers, status) in [
            (honest, &[&host, &bearer][..], 401),
            (honest, &[&host, &own_header], 401),
            (honest, &[&host, &token, &bearer], 401),
            (honest, &[&host, &token, &forwarded], 400),
            (honest, &[&bearer, &cookie], 400),
            (&of_key, &[&host, &token], 404),
            (&of_access, &[&host, &token], 404),
            (&queried, &[&host, &token], 400),
            (&method, &[&host, &token], 405),
            ("GET /v1/keys/agent/none", &[&host, &token, &unknown_tag], 404),
        ] {
            let headers: Vec<_> = headers.iter().map(|header| header.as_str()).collect();
            let request = sidecar.send(line, &headers).await.unwrap();
            let answer = request.answer().await.unwrap();
            assert_eq!(answer.status, status, "{line} {headers:?}: {answer:?}");
            writeln!(answers, "{answer:?}").unwrap();
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_found_where_it_belongs_and_nowhere_else() {
    let flight = Flight::start().await;
    let sidecar = flight.start_sidecar().await;
    flight.provision_and_rotate(&sidecar).await;
    flight.withdraw(&sidecar).await;
    flight.fail().await;
    flight.conflict().await;
    let mut haystack = Haystack::default();
    haystack.add("answers before the crash", ask_badly(&sidecar).await);

    let installation = &flight.installation;
    installation.stop_controller(Signal::SIGKILL).await.unwrap();
    installation.start_controller().await.unwrap();
    let sidecar = sidecar.restart().await.unwrap();
    assert_key(&sidecar, "agent", LIVE).await;
    flight.tenant.touch("agent").await;
    flight.tenant.touch("taken").await;
    haystack.add("answers after the crash", ask_badly(&sidecar).await);
    let directory = sidecar.dir().join("agent");
    let current = std::fs::read_link(directory.join("..data")).unwrap();
    eventually("the end of the version before", SOON, async || {
        let entries = std::fs::read_dir(&directory).unwrap().flatten();
        let mut versions = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        versions.all(|entry| *entry.file_name() == *current)
    })
    .await;

    haystack.add_logs(installation.work_dir());
    haystack.add("log of the sidecar", sidecar.process().log());
    for log in ["log of the sidecar", &logged(installation, "controller")] {
        let (_, text) = haystack.0.iter().find(|(place, _)| place == log).unwrap();
        assert!(text.contains(" TRACE "), "{log} is not at trace");
    }
    haystack.add_process("sidecar", sidecar.process().pid());
    haystack.add_process("controller", installation.controller_pid().unwrap());
    for path in ["/status", "/metrics", "/readyz", "/startupz", "/healthz"] {
        haystack.add(path, sidecar.probe(path).await.unwrap().1);
    }
    for path in [
        "/v1/keys",
        "/v1/keys/agent",
        "/v1/keys/agent/apiKey",
        "/v1/keys/other",
    ] {
        haystack.add(path, format!("{:?}", sidecar.get(path).await.unwrap()));
    }
    haystack.add_files(&sidecar.dir(), &sidecar.dir());
    haystack.add_objects(installation).await;
    for place in ["LLMAccess ", "LLMProvider ", "Event ", "Secret ", "ConfigMap "] {
        assert!(haystack.has(place), "no {place}was looked at");
    }

    let (tenant, other) = (&flight.tenant, &flight.other);
    let of = |tenant: &Tenant, name: &str| format!("Secret {}/{name}", tenant.namespace);
    let master = |tenant: &Tenant| format!("Secret {SYSTEM}/{}", tenant.master);
    let expected = [
        (LIVE, master(tenant)),
        (LIVE, of(tenant, "agent-key")),
        (LIVE, of(tenant, "agent.llmwarden")),
        (LIVE, of(tenant, "handed-over-key")),
        (LIVE, of(tenant, "handed-over.llmwarden")),
        (LIVE, format!("file agent/{}/{API_KEY}", current.display())),
        (LIVE, "/v1/keys/agent".to_owned()),
        (LIVE, "/v1/keys/agent/apiKey".to_owned()),
        (WITHDRAWN, master(other)),
        (INVALID, master(&flight.invalid)),
        (FOREIGN, of(tenant, "taken-key")),
    ];
    let expected = expected.map(|(canary, place)| (canary.to_owned(), place));
    assert_eq!(haystack.search(&CANARIES), BTreeSet::from(expected));

    let token = std::fs::read_to_string(sidecar.dir().join(names::TOKEN_FILE)).unwrap();
    let expected = [names::TOKEN_FILE, names::AUTH_HEADER_FILE];
    let expected = expected.map(|file| (token.clone(), format!("file {file}")));
    assert_eq!(haystack.search(&[&token]), BTreeSet::from(expected));
}

fn logged(installation: &Installation, program: &str) -> String {
    let log = installation.work_dir().join(format!("{program}.log"));
    log.display().to_string()
}
