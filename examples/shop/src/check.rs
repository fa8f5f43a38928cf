//! `shop check URL`: a health check for machines without curl. One plain socket, no runtime, so that it is cheap to run
//! every few seconds.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use crate::client::Url;

/// For connecting, and for each read and write.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks `url`; succeeds if the answer is 2xx.
pub fn run(url: &str) -> ExitCode {
    match ask(url) {
        Ok(200..=299) => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("{url} answered {status}");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("{url}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn ask(url: &str) -> Result<u16, String> {
    let url: Url = url.parse().map_err(str::to_owned)?;
    let address = url
        .authority()
        .to_socket_addrs()
        .map_err(|error| error.to_string())?
        .next()
        .ok_or("the name has no address")?;
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let path = if url.path().is_empty() { "/" } else { url.path() };
        let host = url.authority();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut line = vec![0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut line)?;
        Ok(line)
    };
    let line = exchange().map_err(|error| error.to_string())?;
    let line = String::from_utf8_lossy(&line);
    line.strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5)?.parse().ok())
        .ok_or_else(|| "that is not HTTP".to_owned())
}
