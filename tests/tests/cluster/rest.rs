//! One request to the node of the host that this thread is on.
//!
//! In: a method, a path, a body, a key. Out: what became of it, as far as its sender knows. Promise: it is not sent
//! again here.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
pub const PORT: u16 = 7780;

/// What the sender knows.
#[derive(Debug)]
pub enum Said {
    /// An answer, and whether it is the answer of an earlier request with the same key.
    Answer(u16, Value, bool),
    /// Nobody can have heard it.
    NotSent,
    /// It may have been heard.
    NoAnswer,
}

#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: Option<&'a Value>,
    pub key: Option<&'a str>,
    pub within: Duration,
}

pub fn get(path: &str, within: Duration) -> Said {
    send(Asked {
        method: "GET",
        path,
        body: None,
        key: None,
        within,
    })
}

pub fn send(asked: Asked<'_>) -> Said {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let Ok(stream) = TcpStream::connect_timeout(&address, asked.within) else {
        return Said::NotSent;
    };
    exchange(stream, asked).unwrap_or(Said::NoAnswer)
}

fn exchange(mut stream: TcpStream, asked: Asked<'_>) -> io::Result<Said> {
    let body = asked.body.map(Value::to_string).unwrap_or_default();
    let key = asked.key.map(|key| format!("idempotency-key: {key}\r\n"));
    let request = format!(
        "{} {} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{}connection: close\r\n\r\n{body}",
        asked.method,
        asked.path,
        body.len(),
        key.unwrap_or_default(),
    );
    stream.set_read_timeout(Some(asked.within))?;
    stream.set_write_timeout(Some(asked.within))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "half an answer");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(broken)?;
    let body = serde_json::from_str(body).map_err(|_| broken())?;
    let replayed = head.contains("idempotency-replayed: true");
    Ok(Said::Answer(status, body, replayed))
}
