//! The page behind its door: who gets in, what a form must bear, what is recorded; without a browser.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use api_support::{Server, TOKEN, watchdog};
use futures_util::StreamExt;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

/// A browser as far as the door is concerned: it follows nothing by itself.
struct Browser {
    http: reqwest::Client,
    cookie: Option<String>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(HeaderValue::to_str);
        value.unwrap_or(Ok("")).unwrap()
    }

    /// The value of the first hidden field `proof`.
    fn proof(&self) -> String {
        let (_, rest) = self.text.split_once("name=\"proof\" value=\"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    }
}

impl Browser {
    fn new() -> Self {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(dwcp_controlplane::tls::client(None).unwrap())
            .build()
            .unwrap();
        Self { http, cookie: None }
    }

    fn request(&self, server: &Server, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.http.request(method, server.url(path));
        match &self.cookie {
            Some(cookie) => request.header("cookie", format!("other=1; {cookie}")),
            None => request,
        }
    }

    async fn get(&self, server: &Server, path: &str) -> Answer {
        answer(self.request(server, "GET", path)).await
    }

    /// A form as a browser sends it from a page of this server.
    async fn post(&self, server: &Server, path: &str, form: &str) -> Answer {
        let request = self.request(server, "POST", path);
        answer(
            request
                .header("sec-fetch-site", "same-origin")
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.to_owned()),
        )
        .await
    }

    async fn enter(server: &Server, token: &str) -> Self {
        let mut browser = Self::new();
        let entered = browser
            .post(server, "/ui/login", &format!("token={token}"))
            .await;
        assert_eq!((entered.status, entered.header("location")), (303, "/ui/"));
        let set = entered.header("set-cookie");
        assert!(
            set.contains("; HttpOnly; SameSite=Strict") && !set.contains(token),
            "{set}"
        );
        browser.cookie = Some(set.split(';').next().unwrap().to_owned());
        browser
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = watchdog(request.send()).await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

async fn token(server: &Server, scope: &str) -> (String, String) {
    let (status, made) = server
        .post("/v1/tokens", json!({ "name": scope, "scope": scope }))
        .await;
    assert_eq!(status, 201, "{made}");
    let word = |key: &str| made[key].as_str().unwrap().to_owned();
    (word("token"), word("id"))
}

#[tokio::test]
async fn nothing_is_shown_before_a_token_and_everything_behind_it_is_guarded() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let stranger = Browser::new();
    let root = stranger.get(&server, "/").await;
    assert_eq!((root.status, root.header("location")), (303, "/ui/"));
    let sent = stranger.get(&server, "/ui/").await;
    assert_eq!((sent.status, sent.header("location")), (303, "/ui/login"));
    for path in ["/ui/events", "/ui/nothing"] {
        assert_eq!(stranger.get(&server, path).await.status, 401, "{path}");
    }
    let door = stranger.get(&server, "/ui/login").await;
    assert!(door.text.contains("This connection is not encrypted."));
    for path in [
        "/ui/login",
        "/ui/",
        "/ui/ui.js",
        "/ui/ui.css",
        "/ui/icon.svg",
    ] {
        let answer = stranger.get(&server, path).await;
        assert!(
            !answer.text.contains("node-000000"),
            "{path} tells the node"
        );
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';")
                && !policy.contains("unsafe"),
            "{path}: {policy}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    for wrong in ["", "token=", "token=no", &format!("token={TOKEN}x")] {
        let refused = stranger.post(&server, "/ui/login", wrong).await;
        assert_eq!(refused.status, 401, "{wrong}");
        assert_eq!(refused.header("set-cookie"), "");
        assert!(!refused.text.contains(TOKEN), "a token comes back");
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    }
    // A bearer token is for the API, a cookie for the page.
    let bearer = server.request("GET", "/ui/events");
    assert_eq!(answer(bearer).await.status, 401);
    let browser = Browser::enter(&server, TOKEN).await;
    let api = browser.get(&server, "/v1/migrations").await;
    assert_eq!(api.status, 401, "a cookie opens the API");
    let page = browser.get(&server, "/ui/").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("cache-control"), "no-store");
    assert!(page.text.contains("node-000000") && page.text.contains("token_file"));
    let secret = browser
        .cookie
        .as_deref()
        .unwrap()
        .split_once('=')
        .unwrap()
        .1;
    assert!(!page.text.contains(secret), "the page shows its cookie");
    server.stop().await;
}

#[tokio::test]
async fn a_form_must_come_from_the_page_and_from_somebody_who_may() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let forced = async || server.get("/v1/feature-flags").await.1["force_v1"].clone();
    let (operate, operate_id) = token(&server, "operate").await;
    let (read, _) = token(&server, "read").await;
    let browser = Browser::enter(&server, &operate).await;
    let proof = browser.get(&server, "/ui/").await.proof();
    let throw = format!("proof={proof}&force_v1=true");
    // Another site, an old page, no page at all.
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "http://elsewhere"),
        ("origin", "null"),
        ("accept", "*/*"),
    ] {
        let request = browser.request(&server, "POST", "/ui/switch");
        let refused = answer(request.header(name, value).body(throw.clone())).await;
        assert_eq!(refused.status, 403, "{name}: {value}");
        let login = browser.request(&server, "POST", "/ui/login");
        let login = login.header(name, value).body(format!("token={TOKEN}"));
        assert!(
            [403, 429].contains(&answer(login).await.status),
            "{name}: {value}"
        );
    }
    for form in [
        "force_v1=true",
        "proof=&force_v1=true",
        "proof=0&force_v1=true",
    ] {
        let refused = browser.post(&server, "/ui/switch", form).await;
        assert_eq!(refused.status, 403, "{form}");
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let looker = Browser::enter(&server, &read).await;
    let page = looker.get(&server, "/ui/").await;
    assert!(!page.text.contains("action=\"/ui/switch\""));
    let other = format!("proof={}&force_v1=true", page.proof());
    assert_eq!(looker.post(&server, "/ui/switch", &other).await.status, 403);
    // The proof of one session is nothing in another.
    assert_eq!(
        browser.post(&server, "/ui/switch", &other).await.status,
        403
    );
    assert_eq!(forced().await, json!(false));

    let turned = browser.post(&server, "/ui/switch", &throw).await;
    assert_eq!((turned.status, turned.header("location")), (303, "/ui/"));
    assert_eq!(forced().await, json!(true));
    let page = browser.get(&server, "/ui/").await;
    assert!(page.text.contains("On: everything runs in v1."));
    let release = format!("proof={proof}&force_v1=false");
    assert_eq!(
        browser.post(&server, "/ui/switch", &release).await.status,
        303
    );
    assert_eq!(forced().await, json!(false));
    let (_, log) = server.get("/v1/audit").await;
    let told: Vec<(&Value, &Value, &Value)> = log["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["path"] == "/v1/feature-flags/force-v1")
        .map(|entry| {
            (
                &entry["token"],
                &entry["request"]["force_v1"],
                &entry["status"],
            )
        })
        .collect();
    let id = json!(operate_id);
    assert_eq!(
        told,
        [
            (&id, &json!(false), &json!(303)),
            (&id, &json!(true), &json!(303))
        ],
        "{log}"
    );

    let out = browser
        .post(&server, "/ui/logout", &format!("proof={proof}"))
        .await;
    assert_eq!((out.status, out.header("location")), (303, "/ui/login"));
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    assert_eq!(
        browser.get(&server, "/ui/").await.status,
        303,
        "it has left"
    );
    server.stop().await;
}

#[tokio::test]
async fn events_bring_sections_and_end_with_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (read, id) = token(&server, "read").await;
    let browser = Browser::enter(&server, &read).await;
    let request = browser.request(&server, "GET", "/ui/events");
    let mut stream = watchdog(request.send()).await.unwrap().bytes_stream();
    let mut text = String::new();
    let mut until = async |wanted: &str| {
        watchdog(async {
            while !text.contains(wanted) {
                let piece = stream.next().await.expect("the stream ended").unwrap();
                text.push_str(std::str::from_utf8(&piece).unwrap());
            }
            std::mem::take(&mut text)
        })
        .await
    };
    let first = until("event: beat").await;
    for section in ["summary", "switch", "migrations", "fleet", "versions"] {
        assert!(first.contains(&format!("\"id\":\"{section}\"")), "{first}");
    }
    until("event: beat").await;
    server
        .post("/v1/feature-flags/force-v1", json!({"force_v1": true}))
        .await;
    let changed = until("On: everything runs in v1.").await;
    assert!(
        !changed.contains("\"id\":\"migrations\""),
        "it has not changed"
    );
    let (status, _) =
        api_support::answer(server.request("DELETE", &format!("/v1/tokens/{id}"))).await;
    assert_eq!(status, 200);
    let rest = watchdog(async {
        let mut rest = 0;
        while let Some(piece) = stream.next().await {
            rest += piece.unwrap().len();
        }
        rest
    })
    .await;
    assert!(rest < 100_000, "the stream goes on");
    assert_eq!(browser.get(&server, "/ui/").await.status, 303);
    server.stop().await;
}
