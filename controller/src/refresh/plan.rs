//! What to do next about one pod. Pure: no clock, no cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use llmwarden_proto::names::{NO_VERSION, STATUS_PORT};

use crate::index::pod::{Pod, Report, Run};

/// How long a kubelet and a sidecar are given: it takes them less than half a second.
pub const AGAIN: Duration = Duration::from_secs(2);
/// How often a kubelet is asked for the same versions. Later it looks by itself, about once a minute.
const REQUESTS: u32 = 4;
/// How often a sidecar is asked about the same versions, with growing pauses: for a quarter of an hour.
const QUESTIONS: u32 = 9;
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How far the clocks of the controller and of the API server may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_secs(10);

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Rest,
    /// To look again after this time.
    Wait(Duration),
    /// To ask the kubelet, with this value of the annotation.
    Request(String),
    /// To ask the sidecar, that answers here, what it has.
    Question(SocketAddr),
}

/// What was done about a pod since the last change of what it should have, or of its sidecar.
#[derive(Debug, Clone)]
pub struct Progress {
    wanted: Vec<u64>,
    run: Option<Run>,
    requests: u32,
    questions: u32,
    failures: u32,
    /// Whether the sidecar answered, after the last request, that something is not there.
    lacks: bool,
    /// When something was done last.
    last: Instant,
}

impl Progress {
    /// Nothing was done yet.
    pub fn new(now: Instant) -> Self {
        Self {
            wanted: Vec::new(),
            run: None,
            requests: 0,
            questions: 0,
            failures: 0,
            lacks: false,
            last: now,
        }
    }

    /// The kubelet was asked.
    pub fn requested(&mut self, now: Instant) {
        self.requests += 1;
        self.failures = 0;
        self.lacks = false;
        self.last = now;
    }

    /// The sidecar was asked; `arrived` is its answer, if there was one.
    pub fn questioned(&mut self, arrived: Option<bool>, now: Instant) {
        self.questions += 1;
        self.lacks = arrived == Some(false);
        self.last = now;
    }

    /// The kubelet could not be asked. Says when to try again.
    pub fn failed(&mut self) -> Duration {
        self.failures += 1;
        (AGAIN * 2_u32.saturating_pow(self.failures)).min(LONGEST_PAUSE)
    }

    /// How often the kubelet was asked.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    fn pause(&self) -> Duration {
        match self.requests.max(self.questions) {
            0 => Duration::ZERO,
            times => AGAIN * 2_u32.saturating_pow(times - 1),
        }
    }
}

/// Decides. `wanted` are the versions that the pod should have, in the order of its accesses, `report` is what its sidecar said
/// last.
pub fn plan(
    pod: &Pod,
    wanted: &[u64],
    report: Option<&Report>,
    progress: &mut Progress,
    now: Instant,
) -> Step {
    if pod.leaving || pod.accesses.is_empty() {
        return Step::Rest;
    }
    if progress.wanted != wanted || progress.run != pod.sidecar {
        *progress = Progress {
            wanted: wanted.to_vec(),
            run: pod.sidecar.clone(),
            ..Progress::new(now)
        };
    }
    let text = text(wanted);
    if progress.requests == 0 && !was_requested(pod, wanted, &text) {
        return Step::Request(text);
    }
    let Some(run) = &pod.sidecar else {
        return Step::Rest;
    };
    if report.is_some_and(|report| report.run == *run && has_arrived(pod, wanted, report)) {
        return Step::Rest;
    }
    // A sidecar that has only started may not have read everything when it is first asked.
    let given_time = progress.requests > 0 || progress.questions > 1;
    if progress.lacks && given_time && progress.requests < REQUESTS {
        let times = times(pod).max(progress.requests) + 1;
        return Step::Request(format!("{text}~{times}"));
    }
    if progress.questions == QUESTIONS {
        return Step::Rest;
    }
    match (progress.last + progress.pause()).checked_duration_since(now) {
        Some(left) if !left.is_zero() => Step::Wait(left),
        _ => Step::Question(SocketAddr::new(run.address, STATUS_PORT)),
    }
}

/// Whether a sidecar has said that everything is there.
pub fn has_arrived(pod: &Pod, wanted: &[u64], report: &Report) -> bool {
    pod.accesses
        .iter()
        .zip(wanted)
        .all(|(access, version)| report.accesses.get(access).is_some_and(|told| told.has(*version)))
}

fn text(wanted: &[u64]) -> String {
    let versions: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    versions.join(",")
}

/// Whether the kubelet was asked for these versions, or mounted them when the pod started.
fn was_requested(pod: &Pod, wanted: &[u64], text: &str) -> bool {
    match &pod.refresh {
        Some(asked) => asked.split('~').next() == Some(text),
        None => wanted
            .iter()
            .all(|version| *version == NO_VERSION || is_older(*version, pod)),
    }
}

/// Whether a version was there before the pod: it is at least the time that it was made at.
fn is_older(version: u64, pod: &Pod) -> bool {
    let made = i64::try_from(version)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let with_margin = made.and_then(|made| made.checked_add(CLOCKS).ok());
    with_margin.is_some() && with_margin < pod.created
}

/// How often the kubelet was asked, as the annotation says: the same value again would be no change.
fn times(pod: &Pod) -> u32 {
    let asked = pod.refresh.as_deref().and_then(|text| text.split_once('~'));
    asked.and_then(|(_, times)| times.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::index::pod::Told;

    const VERSION: u64 = 1_780_000_000_000;

    fn run(container: &str) -> Run {
        Run {
            address: "10.0.0.1".parse().expect("an address"),
            container: container.to_owned(),
        }
    }

    /// A pod with the sidecar for `accesses`, created long before [`VERSION`].
    fn pod(accesses: &[&str], refresh: Option<&str>) -> Pod {
        Pod {
            created: Some(Timestamp::UNIX_EPOCH),
            accesses: accesses.iter().map(ToString::to_string).collect(),
            refresh: refresh.map(str::to_owned),
            sidecar: Some(run("first")),
            ..Pod::default()
        }
    }

    fn report(told: &[(&str, Option<u64>)]) -> Report {
        let told = told.iter().map(|(access, version)| {
            let told = Told {
                state: version.map_or("withdrawn", |_| "active").to_owned(),
                version: *version,
                file_version: *version,
                lacking: Vec::new(),
            };
            ((*access).to_owned(), told)
        });
        Report {
            run: run("first"),
            accesses: told.collect(),
        }
    }

    fn question() -> Step {
        Step::Question("10.0.0.1:9471".parse().expect("an address"))
    }

    #[test]
    fn a_kubelet_is_asked_for_what_it_was_not_asked_for() {
        let now = Instant::now();
        let long_before = VERSION - 60_000;
        let created = Timestamp::from_millisecond(1_780_000_000_000).expect("a time");
        let young = |version| Pod {
            created: Some(created),
            ..pod(&["a"], version)
        };
        let ends = |change: fn(&mut Pod)| {
            let mut pod = pod(&["a"], None);
            change(&mut pod);
            pod
        };
        for (pod, wanted, expected) in [
            (pod(&["a"], None), &[VERSION][..], Some("1780000000000")),
            (pod(&["a"], Some("1")), &[VERSION], Some("1780000000000")),
            (pod(&["a"], Some("1780000000000")), &[VERSION], None),
            (pod(&["a"], Some("1780000000000~3")), &[VERSION], None),
            (pod(&["a", "b"], None), &[VERSION, 7], Some("1780000000000,7")),
            (
                pod(&["a", "b"], Some("1780000000000,6")),
                &[VERSION, 7],
                Some("1780000000000,7"),
            ),
            (pod(&["a", "b"], Some("1780000000000,7")), &[VERSION, 7], None),
            // What is gone is fetched too, what was never there is not.
            (pod(&["a"], Some("1780000000000")), &[NO_VERSION], Some("0")),
            (pod(&["a"], None), &[NO_VERSION], None),
            // The kubelet mounts what is there when the pod starts.
            (young(None), &[long_before], None),
            (young(None), &[VERSION - 1], Some("1779999999999")),
            (young(None), &[u64::MAX], Some("18446744073709551615")),
            (young(Some("1")), &[long_before], Some("1779999940000")),
            (pod(&[], None), &[], None),
            (ends(|pod| pod.leaving = true), &[VERSION], None),
            (ends(|pod| pod.sidecar = None), &[VERSION], Some("1780000000000")),
        ] {
            let step = plan(&pod, wanted, None, &mut Progress::new(now), now);
            let requested = match &step {
                Step::Request(text) => Some(text.as_str()),
                _ => None,
            };
            assert_eq!(requested, expected, "{pod:?} {wanted:?}: {step:?}");
        }
    }

    #[test]
    fn a_sidecar_has_what_it_says_it_has() {
        for (wanted, told, expected) in [
            (&[7][..], &[("a", Some(7))][..], true),
            (&[7], &[("a", Some(8))], true),
            (&[7], &[("a", Some(6))], false),
            (&[7], &[("a", None)], false),
            (&[7], &[], false),
            (&[NO_VERSION], &[("a", None)], true),
            (&[NO_VERSION], &[("a", Some(6))], false),
            (&[7, 8], &[("a", Some(7)), ("b", Some(7))], false),
            (&[7, 8], &[("b", Some(8)), ("a", Some(7))], true),
        ] {
            let pod = pod(if wanted.len() == 1 { &["a"] } else { &["a", "b"] }, None);
            assert_eq!(
                has_arrived(&pod, wanted, &report(told)),
                expected,
                "{wanted:?} {told:?}"
            );
        }
        let mut late = report(&[("a", Some(7))]);
        late.accesses.get_mut("a").expect("told").file_version = Some(6);
        assert!(!has_arrived(&pod(&["a"], None), &[7], &late), "files count");
    }

    /// Plays a pod whose sidecar answers as `answer` says, until it rests; what was done, and when, in seconds.
    fn play(mut pod: Pod, wanted: &[u64], answer: impl Fn(u64) -> Option<Report>) -> Vec<(u64, String)> {
        let begin = Instant::now();
        let (mut now, mut progress, mut said, mut done) = (begin, Progress::new(begin), None, Vec::new());
        loop {
            let at = now.duration_since(begin).as_secs();
            match plan(&pod, wanted, said.as_ref(), &mut progress, now) {
                Step::Rest => return done,
                Step::Wait(pause) => now += pause,
                Step::Request(text) => {
                    done.push((at, text.clone()));
                    pod.refresh = Some(text);
                    progress.requested(now);
                }
                Step::Question(_) => {
                    done.push((at, "?".to_owned()));
                    said = answer(at);
                    let arrived = said.as_ref().map(|report| has_arrived(&pod, wanted, report));
                    progress.questioned(arrived, now);
                }
            }
        }
    }

    fn steps(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected
            .iter()
            .map(|(at, what)| (*at, (*what).to_owned()))
            .collect()
    }

    #[test]
    fn what_has_arrived_is_asked_for_once() {
        let done = play(pod(&["a"], Some("6")), &[7], |_| Some(report(&[("a", Some(7))])));
        assert_eq!(done, steps(&[(0, "7"), (2, "?")]));
        // A controller that starts anew asks the sidecar alone.
        let done = play(pod(&["a"], Some("7")), &[7], |_| Some(report(&[("a", Some(7))])));
        assert_eq!(done, steps(&[(0, "?")]));
    }

    #[test]
    fn a_kubelet_that_did_not_hear_is_asked_again() {
        let done = play(pod(&["a"], Some("6")), &[7], |at| {
            Some(report(&[("a", Some(if at < 6 { 6 } else { 7 }))]))
        });
        assert_eq!(done, steps(&[(0, "7"), (2, "?"), (2, "7~2"), (6, "?")]));
        let done = play(pod(&["a"], Some("7~2")), &[7], |at| {
            Some(report(&[("a", Some(if at < 6 { 6 } else { 7 }))]))
        });
        assert_eq!(done, steps(&[(0, "?"), (2, "?"), (2, "7~3"), (6, "?")]));
    }

    #[test]
    fn nobody_is_asked_for_ever() {
        for answer in [None, Some(report(&[("a", Some(6))]))] {
            let done = play(pod(&["a"], Some("6")), &[7], |_| answer.clone());
            let requests = done.iter().filter(|(_, what)| what != "?").count();
            assert_eq!(requests, if answer.is_some() { 4 } else { 1 }, "{done:?}");
            assert_eq!(done.len() - requests, 9, "{done:?}");
        }
    }

    #[test]
    fn another_version_or_another_run_begins_anew() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        let mut pod = pod(&["a"], Some("7"));
        assert_eq!(plan(&pod, &[7], None, &mut progress, now), question());
        progress.questioned(None, now);
        assert_eq!(plan(&pod, &[7], None, &mut progress, now), Step::Wait(AGAIN));
        pod.sidecar = Some(run("second"));
        let of_the_first = report(&[("a", Some(7))]);
        assert_eq!(
            plan(&pod, &[7], Some(&of_the_first), &mut progress, now),
            question()
        );
        assert_eq!(
            plan(&pod, &[8], None, &mut progress, now),
            Step::Request("8".to_owned())
        );
    }
}
