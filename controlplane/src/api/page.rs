//! Long lists in parts.
//!
//! In: `?limit=` and `?cursor=` of a request, and the whole list. Out: a part, and in `next` the cursor of the one
//! after it. Promise: whoever follows `next` to its end sees each thing that was there all the time exactly once,
//! whatever comes or goes meanwhile.

use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::problem::Problem;

/// Longest part, and the length of one without `limit`.
pub const LIMIT_MAX: usize = 1_000;

/// Which part is asked for.
pub struct Page {
    limit: usize,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    limit: Option<usize>,
    cursor: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let asked = Query::<Asked>::from_request_parts(parts, state).await;
        let Query(asked) = asked.map_err(|rejection| {
            let words: String = rejection.body_text().chars().take(300).collect();
            Problem::bad_request(words)
        })?;
        let limit = asked.limit.unwrap_or(LIMIT_MAX);
        if !(1..=LIMIT_MAX).contains(&limit) {
            let words = format!("limit is 1 to {LIMIT_MAX}, not {limit}");
            return Err(Problem::bad_request(words));
        }
        Ok(Self {
            limit,
            cursor: asked.cursor,
        })
    }
}

impl Page {
    /// The part of a list, under `name`; `key` names each thing.
    ///
    /// # Errors
    /// [`Problem`] with status 400 if the cursor's thing is gone.
    pub fn of<T: Serialize>(
        &self,
        name: &str,
        all: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> Result<Json<Value>, Problem> {
        let first = match &self.cursor {
            None => 0,
            Some(cursor) => {
                let place = all.iter().position(|one| key(one) == *cursor);
                place.ok_or_else(|| {
                    Problem::bad_request(
                        "the cursor is none of this list, or what it meant is gone: begin without one",
                    )
                })? + 1
            }
        };
        let more = all.len() > first.saturating_add(self.limit);
        let part: Vec<T> = all.into_iter().skip(first).take(self.limit).collect();
        let mut answer = Map::new();
        if more && let Some(last) = part.last() {
            answer.insert("next".to_owned(), key(last).into());
        }
        let part = serde_json::to_value(part)
            .map_err(|error| Problem::bad_request(format!("no JSON: {error}")))?;
        answer.insert(name.to_owned(), part);
        Ok(Json(Value::Object(answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(limit: usize, cursor: Option<&str>) -> Value {
        let page = Page {
            limit,
            cursor: cursor.map(ToOwned::to_owned),
        };
        let all = vec!["e", "d", "c", "b", "a"];
        page.of("l", all, |one| (*one).to_owned())
            .map_or(Value::Null, |json| json.0)
    }

    #[test]
    fn the_parts_are_the_whole() {
        let (mut seen, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let part = part(2, cursor.as_deref());
            seen.extend(
                part["l"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|one| one.as_str().unwrap().to_owned()),
            );
            match part["next"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(seen, ["e", "d", "c", "b", "a"]);
        assert_eq!(
            part(5, None),
            serde_json::json!({"l": ["e", "d", "c", "b", "a"]})
        );
        assert_eq!(part(5, Some("z")), Value::Null);
    }
}
