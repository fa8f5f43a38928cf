//! Answers that are compressed on their way (RFC 9110, 8.4.1).
//!
//! What is at hand is compressed together; when the endpoint pauses, everything so far goes out, so that streams of
//! events arrive as they happen. Levels are low: the point is the wire, not the last percent.

use std::io::{self, Write};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, header::HeaderName};
use keel_model::Encoding;
use keel_route::filter::{DROPPED, ResponseView, coding_name, weak_etag};

use crate::bridge::endpoint::{at_hand, awaited_piece};
use crate::bridge::sink::Sink;
use crate::bridge::source::{Piece, Source};
use crate::bridge::upload::Broken;
use crate::counted::Counted;
use crate::deadline::Deadline;
use crate::route::{MappedFields, RouteAt, Way};

/// Of gzip, 1 to 9.
const GZIP: u32 = 4;
/// Of Brotli, 0 to 11.
const BROTLI: u32 = 4;
/// Base-2 logarithm of Brotli's window: memory for each answer on its way.
const BROTLI_WINDOW: u32 = 18;
/// Brotli's own buffer.
const BROTLI_BUFFER: usize = 4096;
/// Of Zstandard, 1 to 22.
const ZSTD: i32 = 2;
/// Base-2 logarithm of Zstandard's window; decoders need not take more than 23 (RFC 9659).
const ZSTD_WINDOW: u32 = 18;

/// What a route and a client want of compression.
#[derive(Debug)]
pub struct Compressing {
    route: RouteAt,
    accepted: Option<Encoding>,
}

impl Compressing {
    /// `None` if the route compresses nothing.
    pub fn new(way: &Way) -> Option<Self> {
        let accepted = way.pass.as_ref().and_then(|pass| pass.accepted);
        way.compresses().then(|| way.route.clone()).flatten().map(|route| Self { route, accepted })
    }

    /// Decides by the head of the answer, and changes it accordingly.
    pub fn begin(self, status: StatusCode, head: bool, headers: &mut HeaderMap) -> Option<Encoder> {
        let policy = self.route.route().compression()?;
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        let fields = MappedFields(std::mem::take(headers));
        let view = ResponseView {
            status: status.as_u16(),
            head,
            content_length: length,
            headers: &fields,
        };
        let coding = policy.choose(self.accepted, &view);
        *headers = fields.0;
        if coding.vary {
            headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        let encoder = Encoder::new(coding.encoding?).ok()?;
        for name in DROPPED {
            headers.remove(HeaderName::from_static(name));
        }
        let name = HeaderValue::from_static(coding_name(coding.encoding?));
        headers.insert(header::CONTENT_ENCODING, name);
        let weak = headers.get(header::ETAG).and_then(|etag| weak_etag(etag.as_bytes()));
        if let Some(weak) = weak.and_then(|etag| HeaderValue::from_bytes(&etag).ok()) {
            headers.insert(header::ETAG, weak);
        }
        Some(encoder)
    }
}

/// An answer that is being compressed.
pub enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(encoding: Encoding) -> io::Result<Self> {
        let out = Vec::new();
        Ok(match encoding {
            Encoding::Gzip => {
                Self::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::new(GZIP)))
            }
            Encoding::Br => Self::Brotli(Box::new(brotli::CompressorWriter::new(
                out,
                BROTLI_BUFFER,
                BROTLI,
                BROTLI_WINDOW,
            ))),
            Encoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD)?;
                encoder.window_log(ZSTD_WINDOW)?;
                Self::Zstd(encoder)
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    /// What has come out so far.
    fn take(&mut self) -> Bytes {
        let out = match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        };
        std::mem::take(out).into()
    }

    /// The rest.
    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Gzip(encoder) => encoder.finish()?.into(),
            Self::Brotli(encoder) => encoder.into_inner().into(),
            Self::Zstd(encoder) => encoder.finish()?.into(),
        })
    }

    /// Sends what has come out so far.
    async fn send(
        &mut self,
        sink: &mut Sink<'_>,
        deadline: &Deadline,
        counted: &Counted,
    ) -> Result<(), Broken> {
        let out = self.take();
        let n = out.len() as u64;
        if n > 0 {
            sink.data(out, false, deadline).await.map_err(|_| Broken::Sink)?;
            counted.passed(n);
        }
        Ok(())
    }

    /// Passes a body on, counted as it goes out.
    pub async fn relay(
        mut self,
        source: &mut Source<'_>,
        sink: &mut Sink<'_>,
        deadline: &Deadline,
        counted: &Counted,
    ) -> Result<(), Broken> {
        let idle = counted.idle();
        let mut trailers = None;
        // Writing to memory fails only for want of it.
        let failed = |_: io::Error| Broken::Source;
        let gone = |_| Broken::Sink;
        loop {
            let piece = match at_hand(source).await {
                Some(piece) => piece?,
                None => {
                    self.writer().flush().map_err(failed)?;
                    self.send(sink, deadline, counted).await?;
                    awaited_piece(source, sink, deadline, idle).await?
                }
            };
            match piece {
                Piece::Data(data) => {
                    self.writer().write_all(&data).map_err(failed)?;
                    self.send(sink, deadline, counted).await?;
                    source.passed(data.len());
                    if source.is_over() {
                        break;
                    }
                }
                Piece::Trailers(last) => {
                    counted.grpc(&last);
                    trailers = Some(last);
                    break;
                }
                Piece::End => break,
            }
        }
        let rest = self.finish().map_err(failed)?;
        counted.moved(0, rest.len() as u64);
        match trailers {
            None => sink.data(rest, true, deadline).await.map_err(gone)?,
            Some(trailers) => {
                sink.data(rest, false, deadline).await.map_err(gone)?;
                sink.finish(Some(trailers), deadline).await.map_err(gone)?;
            }
        }
        Ok(())
    }
}
