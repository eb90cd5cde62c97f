//! Route of the audit log; for administrators.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/audit` | `{"entries":[…]}`, the newest first |

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use super::App;
use super::page::Page;
use super::problem::Problem;

/// `GET /v1/audit`
pub async fn list(State(app): State<App>, page: Page) -> Result<Json<Value>, Problem> {
    let read = tokio::task::spawn_blocking(move || app.audit.list());
    let entries = read.await.map_err(|error| Problem::lost_task(&error))??;
    page.of("entries", entries, |entry| entry.number.to_string())
}
