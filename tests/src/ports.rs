//! Ports for servers that have to be told theirs before they start.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Below the kernel's ephemeral range: a client that retries a closed port there can be given that very port as its
/// own source, and then the server can't come back to it.
const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A loopback port that nobody listens on, and that no other caller in this process was given.
pub fn free_port() -> u16 {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        // Random, as several test processes run side by side.
        let random = RandomState::new().hash_one(0);
        let port = FIRST + u16::try_from(random % u64::from(COUNT)).unwrap_or_default();
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
}
