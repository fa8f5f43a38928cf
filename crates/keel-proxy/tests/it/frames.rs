//! HTTP/2 frame by frame, for what no library would send.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::backend::Connection;
use crate::proxy::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames (RFC 9113, 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

// Flags.
pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;

// Errors (RFC 9113, 7).
pub const PROTOCOL_ERROR: u32 = 0x1;
pub const FLOW_CONTROL_ERROR: u32 = 0x3;
pub const REFUSED_STREAM: u32 = 0x7;
pub const CANCEL: u32 = 0x8;
pub const COMPRESSION_ERROR: u32 = 0x9;
pub const ENHANCE_YOUR_CALM: u32 = 0xb;

/// The fields of an answer with status 200 and nothing else (RFC 7541, appendix A).
pub const OK: &[u8] = &[0x88];

/// A frame as it came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error of a reset or a farewell.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap()))
    }

    /// Whether it begins an answer with status 200.
    pub fn is_ok(&self) -> bool {
        self.kind == HEADERS && self.payload.starts_with(OK)
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals that stay out of the table (RFC 7541, 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(text.len(), &mut bytes);
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// An integer with a prefix of seven bits.
fn integer(mut n: usize, bytes: &mut Vec<u8>) {
    if n < 127 {
        return bytes.push(n as u8);
    }
    bytes.push(127);
    n -= 127;
    while n >= 128 {
        bytes.push((n % 128) as u8 | 128);
        n /= 128;
    }
    bytes.push(n as u8);
}

/// The pseudo-fields of a request, then more.
pub fn fields<'a>(method: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "cart"), (":path", "/")];
    pseudo.iter().chain(more).copied().collect()
}

/// A setting (RFC 9113, 6.5.1).
pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A connection, of a client or of an endpoint.
pub struct Frames {
    reader: BufReader<TcpStream>,
}

impl Frames {
    /// A client that has said the preface with these settings.
    pub fn connect(address: SocketAddr, settings: &[u8]) -> Self {
        let mut client = Self::new(BufReader::new(TcpStream::connect(address).unwrap()));
        client.write(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).unwrap();
        client
    }

    /// An endpoint that has heard the preface and told these settings.
    pub fn serve(connection: Connection, settings: &[u8]) -> Self {
        let mut endpoint = Self::new(connection.reader);
        let mut preface = [0; PREFACE.len()];
        // What looks whether somebody listens says nothing.
        if endpoint.read(&mut preface).is_some() {
            assert_eq!(preface, PREFACE);
            endpoint.send(SETTINGS, 0, 0, settings);
        }
        endpoint
    }

    /// On a connection where something else was spoken.
    pub fn new(reader: BufReader<TcpStream>) -> Self {
        let stream = reader.get_ref();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader }
    }

    /// The connection itself.
    pub fn stream(&self) -> TcpStream {
        self.reader.get_ref().try_clone().unwrap()
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload)).unwrap();
    }

    /// A request without a body.
    pub fn get(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields("GET", &[])));
    }

    /// The next frame; `None` at the end of the connection, however it comes.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        self.read(&mut payload)?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    fn read(&mut self, room: &mut [u8]) -> Option<()> {
        match self.reader.read_exact(room) {
            Ok(()) => Some(()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came in time"),
            Err(_) => None,
        }
    }

    /// The next frame of which `wanted` is true; the connection must not end before.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("it ended before {what}"));
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// Whether the connection was there to be ended.
    pub fn end_sending(&mut self) -> bool {
        self.reader.get_ref().shutdown(std::net::Shutdown::Write).is_ok()
    }

    /// Waits for the end of the connection; the error that was given for it.
    pub fn end(&mut self) -> Option<u32> {
        let mut why = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                why = frame.error();
            }
        }
        why
    }
}
