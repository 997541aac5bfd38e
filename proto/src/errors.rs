//! What to say of a failed request to the API server. Never a parser's own words: they may quote a Secret.

use kube::runtime::watcher;

/// What went wrong with a request, in the API server's words where it has any.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server refused: {}", status.message),
        kube::Error::SerdeError(_) => "the API server's answer can't be read".to_owned(),
        error => format!("the API server can't be reached: {error}"),
    }
}

/// What went wrong with a watch.
pub fn describe_watch(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) => format!("the API server ended the watch: {}", status.message),
        NoResourceVersion => "the API server sent no resource version".to_owned(),
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => describe(error),
    }
}
