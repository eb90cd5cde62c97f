//! Lines of a monitor. In: bytes from the hypervisor. Out: greetings, answers and events, or a typed
//! error. No line longer than [`LINE_BYTES_MAX`] is ever kept.

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use super::error::QmpError;

/// Longest line. The longest real one, the answer to a query, is a few KiB.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Longest text of the hypervisor's that is passed on.
const TEXT_BYTES_MAX: usize = 500;

/// One message of the monitor.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// First line of every connection.
    Greeting {
        /// The monitor can carry commands out that overtake others.
        oob: bool,
    },
    /// A command was carried out.
    Return {
        /// Its id; absent if the monitor could not read it.
        id: Option<u64>,
        /// What it returned.
        value: Value,
    },
    /// A command was refused.
    Error {
        /// Its id; absent if the monitor could not read it.
        id: Option<u64>,
        /// The monitor's class of the error.
        class: String,
        /// The monitor's words.
        description: String,
    },
    /// Something happened.
    Event {
        /// Its name.
        name: String,
        /// What belongs to it.
        data: Value,
    },
    /// An object of a kind that is not known: skipped.
    Other,
}

/// Reads one message.
///
/// # Errors
/// [`QmpError::Garbled`] if the line is no JSON object.
pub fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| QmpError::Garbled(error.to_string()))?;
    let Value::Object(mut object) = value else {
        return Err(QmpError::Garbled("a line that is no object".to_owned()));
    };
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(value) = object.remove("return") {
        return Ok(Message::Return { id, value });
    }
    if let Some(error) = object.get("error") {
        return Ok(Message::Error {
            id,
            class: text(error.get("class")),
            description: text(error.get("desc")),
        });
    }
    if object.contains_key("event") {
        let name = text(object.get("event"));
        return Ok(Message::Event {
            name,
            data: object.remove("data").unwrap_or(Value::Null),
        });
    }
    if let Some(greeting) = object.get("QMP") {
        let able = greeting.get("capabilities").and_then(Value::as_array);
        let oob = able.is_some_and(|able| able.iter().any(|word| word == "oob"));
        return Ok(Message::Greeting { oob });
    }
    Ok(Message::Other)
}

fn text(value: Option<&Value>) -> String {
    value
        .and_then(Value::as_str)
        .unwrap_or("")
        .chars()
        .filter(|letter| !letter.is_control())
        .take(TEXT_BYTES_MAX)
        .collect()
}

/// Reads one line into `line`, without its end.
///
/// # Errors
/// [`QmpError::Closed`] at the end of the stream, [`QmpError::Garbled`] if the line is too long.
pub async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> Result<(), QmpError> {
    line.clear();
    loop {
        let chunk = reader.fill_buf().await.map_err(|_| QmpError::Closed)?;
        if chunk.is_empty() {
            return Err(QmpError::Closed);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let take = end.unwrap_or(chunk.len());
        if line.len() + take > LINE_BYTES_MAX {
            return Err(QmpError::Garbled(format!(
                "a line longer than {LINE_BYTES_MAX} bytes"
            )));
        }
        line.extend_from_slice(&chunk[..take]);
        let used = take + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_of_line_is_told_apart() {
        assert_eq!(
            parse(br#"{"QMP":{"version":{}}}"#),
            Ok(Message::Greeting { oob: false })
        );
        assert_eq!(
            parse(br#"{"return":{},"id":4}"#),
            Ok(Message::Return {
                id: Some(4),
                value: json!({})
            })
        );
        assert_eq!(
            parse(br#"{"id":5,"error":{"class":"GenericError","desc":"no","new":1}}"#),
            Ok(Message::Error {
                id: Some(5),
                class: "GenericError".to_owned(),
                description: "no".to_owned()
            })
        );
        assert_eq!(
            parse(br#"{"timestamp":{},"event":"MIGRATION","data":{"status":"setup"}}"#),
            Ok(Message::Event {
                name: "MIGRATION".to_owned(),
                data: json!({"status":"setup"})
            })
        );
        assert_eq!(parse(br#"{"tomorrow":1}"#), Ok(Message::Other));
    }

    #[test]
    fn garbage_is_a_typed_error() {
        for line in [&b""[..], b"[1]", b"{", b"\xff\xfe", b"null", b"{\"a\":1}}"] {
            assert!(matches!(parse(line), Err(QmpError::Garbled(_))), "{line:?}");
        }
        // Nested deeper than any real message: refused, not recursed into.
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[tokio::test]
    async fn lines_are_cut_and_bounded() {
        let mut reader: &[u8] = b"one\ntwo\r\nrest";
        let mut line = Vec::new();
        read_line(&mut reader, &mut line).await.unwrap();
        assert_eq!(line, b"one");
        read_line(&mut reader, &mut line).await.unwrap();
        assert_eq!(line, b"two\r");
        assert_eq!(
            read_line(&mut reader, &mut line).await,
            Err(QmpError::Closed)
        );

        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let mut reader: &[u8] = &long;
        assert!(matches!(
            read_line(&mut reader, &mut line).await,
            Err(QmpError::Garbled(_))
        ));
        assert!(line.len() <= LINE_BYTES_MAX);
    }
}
