//! A client that says exactly what it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::backend::read_body;
use crate::proxy::PATIENCE;

pub struct Client {
    pub reader: BufReader<TcpStream>,
}

/// An answer as the client sees it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// As it came, chunks and all.
    pub body: String,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line
    }

    /// The next head.
    pub fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let n = self.reader.read_line(&mut head).unwrap();
            assert!(n > 0, "the connection ended after {head:?}");
        }
        head
    }

    /// The next answer, to a request that was not `HEAD`.
    pub fn answer(&mut self) -> Answer {
        let head = self.head();
        let status = head[9..12].parse().unwrap();
        let body = match status {
            204 | 304 => Vec::new(),
            _ => read_body(&mut self.reader, &head).unwrap(),
        };
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n"));
        self.answer()
    }

    pub fn post(&mut self, body: &str) -> Answer {
        let length = body.len();
        self.send(format!(
            "POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        self.answer()
    }

    /// Everything until the end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).unwrap();
        rest
    }

    pub fn ended(&mut self) -> bool {
        self.rest().is_empty()
    }

    pub fn end_sending(&mut self) {
        self.reader.get_mut().shutdown(Shutdown::Write).unwrap();
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).get(path)
}
