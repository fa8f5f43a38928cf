//! What the server tells the proxy: frames are found however they arrive, and any state can follow any other.

use keel_proxy::fuzz::State;
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::ToProxy;

/// Longest frame that is taken here.
const LIMIT: usize = 4096;

/// `frames`.
pub fn frames(bytes: &[u8]) {
    let whole = decode(&[bytes]);
    for cut in crate::cuts(bytes, 2) {
        let (one, two) = bytes.split_at(cut);
        assert_eq!(decode(&[one, two]), whole, "cut at {cut}");
    }
    for message in &whole.0 {
        let frame = encode(message).expect("no longer than it was");
        let mut decoder = Decoder::default();
        decoder.push(&frame);
        let again = decoder.decode::<ToProxy>().expect("what was encoded is decoded");
        assert_eq!(again.as_ref(), Some(message));
    }
}

/// The messages, and whether the bytes were good to the end.
fn decode(pieces: &[&[u8]]) -> (Vec<ToProxy>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.decode::<ToProxy>() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, true)
}

/// `state`: a message a line, without the lengths that frames have.
pub fn state(bytes: &[u8]) {
    let mut state = State::default();
    for line in bytes.split(|b| *b == b'\n') {
        let Ok(message) = serde_json::from_slice::<ToProxy>(line) else { continue };
        let before = state.generation();
        let clusters: Vec<_> = match &message {
            ToProxy::Stats
            | ToProxy::Callers { .. }
            | ToProxy::TakeOver
            | ToProxy::Retire
            | ToProxy::Lend { .. } => Vec::new(),
            ToProxy::Snapshot(snapshot) => snapshot.clusters.keys().cloned().collect(),
            ToProxy::Cluster { generation, .. } | ToProxy::Endpoints { generation, .. }
                if *generation <= before =>
            {
                Vec::new()
            }
            ToProxy::Cluster { id, .. } | ToProxy::Endpoints { id, .. } => vec![id.clone()],
        };
        let replaces = matches!(message, ToProxy::Snapshot(_));
        state.obey(message);
        assert!(replaces || state.generation() >= before, "back in time");
        let (known, _) = state.known();
        for id in clusters {
            assert!(known.iter().any(|(name, _)| *name == id), "{id} was forgotten");
        }
    }
}
