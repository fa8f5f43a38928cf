//! The frames between server and proxy: a 4-byte big-endian length, then that many bytes of JSON.
//!
//! [`Decoder`] is fed whatever a socket delivers, in pieces of any size. It never holds more than one
//! frame of the allowed size plus the piece that was pushed last, and an announced length beyond the limit
//! is an error before anything of it is stored.

use bytes::{Buf, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::snapshot::MAX_FRAME;

/// Bytes of the length in front of each frame.
const HEADER: usize = 4;

/// Why bytes are not a frame. The connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The frame is longer than the limit.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// What the peer announced, or what was to be sent.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The frame is not what was expected.
    #[error("a frame that is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// One frame with `message` in it.
///
/// # Errors
/// [`Error::TooLong`] when it would be over [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER;
    match u32::try_from(length) {
        Ok(announced) if length <= MAX_FRAME => {
            frame[..HEADER].copy_from_slice(&announced.to_be_bytes());
            Ok(frame)
        }
        _ => Err(Error::TooLong { length, limit: MAX_FRAME }),
    }
}

/// Puts frames together again.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_FRAME)
    }
}

impl Decoder {
    /// A decoder that accepts frames of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Adds what the socket delivered. Call [`Decoder::decode`] until it has no more before pushing again.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, if there is one.
    ///
    /// # Errors
    /// When the frame is too long or is not a `T`.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if length > self.limit {
            return Err(Error::TooLong { length, limit: self.limit });
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.buffer[HEADER..HEADER + length]);
        self.buffer.advance(HEADER + length);
        if self.buffer.is_empty() {
            // A large snapshot comes once; its memory is not kept for the small frames that follow.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keel_model::{Endpoint, EndpointState, Generation, InstanceId, Protocol};
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::{Cluster, FromProxy, Listener, Snapshot, ToProxy};

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (0u32..1000, any::<[u8; 4]>(), 1u16.., any::<bool>()).prop_map(|(n, ip, port, ready)| {
            Endpoint {
                instance: InstanceId::new(format!("shop-cart-{n}")).unwrap(),
                address: (ip, port).into(),
                state: if ready { EndpointState::Ready } else { EndpointState::Draining },
            }
        })
    }

    fn cluster() -> impl Strategy<Value = Cluster> {
        (prop::collection::vec(endpoint(), 0..4), any::<bool>())
            .prop_map(|(endpoints, expected)| Cluster { endpoints, expected, ..Cluster::default() })
    }

    fn message() -> impl Strategy<Value = ToProxy> {
        let clusters =
            prop::collection::btree_map("[a-z]{1,8}/[a-z]{1,8}:[0-9]{1,5}", cluster(), 0..4);
        prop_oneof![
            Just(ToProxy::Stats),
            (any::<u64>(), "[a-z]{1,8}", cluster()).prop_map(|(generation, id, cluster)| {
                ToProxy::Cluster { generation: Generation(generation), id, cluster }
            }),
            (any::<u64>(), "[a-z]{1,8}", prop::collection::vec(endpoint(), 0..4)).prop_map(
                |(generation, id, set)| {
                    let gone = set.iter().map(|endpoint| endpoint.instance.clone()).collect();
                    ToProxy::Endpoints { generation: Generation(generation), id, set, gone }
                }
            ),
            (any::<u64>(), clusters).prop_map(|(generation, clusters)| {
                let listeners = clusters.keys().map(|id: &String| Listener {
                    bind: ([127, 0, 0, 1], 80).into(),
                    protocol: Protocol::Auto,
                    cluster: id.clone(),
                    published: id.len().is_multiple_of(2),
                    ..Listener::default()
                });
                ToProxy::Snapshot(Snapshot {
                    generation: Generation(generation),
                    listeners: listeners.collect(),
                    clusters: clusters.clone(),
                    ..Snapshot::default()
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            messages in prop::collection::vec(message(), 0..5),
            piece in 1usize..200,
        ) {
            let wire: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for bytes in wire.chunks(piece) {
                decoder.push(bytes);
                while let Some(message) = decoder.decode::<ToProxy>().unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(decoder.buffer.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::new(1000);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.decode::<FromProxy>() {}
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_at_once() {
        let mut decoder = Decoder::new(10);
        decoder.push(&11u32.to_be_bytes());
        assert!(matches!(
            decoder.decode::<ToProxy>(),
            Err(Error::TooLong { length: 11, limit: 10 })
        ));
    }

    #[test]
    fn an_acknowledgement_of_an_earlier_version_is_understood() {
        let mut decoder = Decoder::default();
        let earlier = br#"{"ack":{"generation":7,"failed":[]}}"#;
        decoder.push(&u32::try_from(earlier.len()).unwrap().to_be_bytes());
        decoder.push(earlier);
        let ack = FromProxy::Ack { generation: Generation(7), failed: vec![], lacks: None };
        assert_eq!(decoder.decode().unwrap(), Some(ack.clone()));
        // And says nothing new to one that lacks nothing.
        assert_eq!(&encode(&ack).unwrap()[HEADER..], earlier);
    }

    #[test]
    fn an_empty_snapshot_is_readable_by_people() {
        let frame = encode(&ToProxy::Snapshot(Snapshot::default())).unwrap();
        assert_eq!(
            std::str::from_utf8(&frame[4..]).unwrap(),
            r#"{"snapshot":{"generation":0,"listeners":[],"clusters":{}}}"#
        );
        let none: BTreeMap<String, Cluster> = BTreeMap::new();
        assert_eq!(Snapshot::default().clusters, none);
    }
}
