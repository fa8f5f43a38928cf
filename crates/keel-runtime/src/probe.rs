//! Asks an instance whether it can take requests.

use std::net::SocketAddr;
use std::time::Duration;

use keel_model::Probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest status line that is understood: `HTTP/1.1 200 ` and a reason nobody reads.
const MAX_STATUS_LINE: usize = 512;

/// Asks once. The error says what was answered instead, for people.
///
/// [`Probe::Exec`] is not asked over the network: run it with [`crate::Runtime::exec`]. [`Probe::None`] is always
/// content.
///
/// # Errors
/// When the instance is not ready, or did not say so within `timeout`.
pub async fn check(probe: &Probe, address: SocketAddr, timeout: Duration) -> Result<(), String> {
    let ask = async {
        match probe {
            Probe::None => Ok(()),
            Probe::Exec(_) => Err("a command is run inside the instance, not asked here".into()),
            Probe::Tcp => connect(address).await.map(drop),
            Probe::Http { path } => http(address, path).await,
        }
    };
    tokio::time::timeout(timeout, ask).await.unwrap_or_else(|_| {
        Err(format!("{address} did not answer within {} ms", timeout.as_millis()))
    })
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))
}

async fn http(address: SocketAddr, path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' ') {
        return Err(format!("the path {path:?} must begin with / and hold no spaces"));
    }
    let failed = |error: std::io::Error| format!("GET http://{address}{path}: {error}");
    let mut stream = connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: keel-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(MAX_STATUS_LINE);
    while !head.contains(&b'\n') && head.len() < MAX_STATUS_LINE {
        let mut chunk = [0u8; MAX_STATUS_LINE];
        match stream.read(&mut chunk).await.map_err(failed)? {
            0 => break,
            count => head.extend_from_slice(&chunk[..count]),
        }
    }
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    match status(&line) {
        Some(200..=399) => Ok(()),
        Some(_) => Err(format!("GET http://{address}{path} answered {}", line.trim())),
        None => Err(format!("GET http://{address}{path}: the answer is not HTTP")),
    }
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.")?;
    let code = rest.split_ascii_whitespace().nth(1)?;
    if code.len() == 3 { code.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0u8; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn http_statuses_decide() {
        let probe = Probe::Http { path: "/health?x=1".into() };
        let second = Duration::from_secs(5);
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n\r\n", false),
            ("HTTP/1.1 503 Busy\r\n\r\n", false),
            ("SSH-2.0-OpenSSH\r\n", false),
            ("", false),
        ] {
            let address = answering(answer).await;
            let result = check(&probe, address, second).await;
            assert_eq!(result.is_ok(), good, "{answer:?}: {result:?}");
        }
    }

    #[tokio::test]
    async fn tcp_needs_a_listener_and_silence_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let short = Duration::from_millis(50);
        assert_eq!(check(&Probe::Tcp, address, Duration::from_secs(5)).await, Ok(()));
        let silent = check(&Probe::Http { path: "/".into() }, address, short).await.unwrap_err();
        assert!(silent.contains("within 50 ms"), "{silent}");
        drop(listener);
        assert!(check(&Probe::Tcp, address, Duration::from_secs(5)).await.is_err());
        assert!(check(&Probe::Http { path: "x".into() }, address, short).await.is_err());
    }
}
