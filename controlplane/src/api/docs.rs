//! The API's documentation for people: Swagger UI, at `/docs/`.
//!
//! In: nothing of the request but its path. Out: files that are part of this program. Promises: they are the same for
//! everybody and tell nothing of this node, so they need no token; the document itself does, and the page asks for one;
//! the browser loads nothing from anywhere else.

use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Redirect, Response};

/// Everything below it is for everybody.
pub const ROOT: &str = "/docs/";

/// Nothing from elsewhere; Swagger UI sets styles of its own and draws small pictures.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, packed: bool, bytes: &'static [u8]) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "max-age=3600"),
    ];
    let mut response = (headers, bytes).into_response();
    if packed {
        let gzip = axum::http::HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
    }
    response
}

/// `GET /docs`
pub async fn root() -> Redirect {
    Redirect::permanent(ROOT)
}

/// `GET /docs/`
pub async fn page() -> Response {
    let html = include_bytes!("../../assets/docs.html");
    file("text/html; charset=utf-8", false, html)
}

/// `GET /docs/docs.js`
pub async fn script() -> Response {
    let script = include_bytes!("../../assets/docs.js");
    file("text/javascript; charset=utf-8", false, script)
}

/// `GET /docs/swagger-ui-bundle.js`
pub async fn bundle() -> Response {
    let bundle = include_bytes!("../../assets/swagger-ui/swagger-ui-bundle.js.gz");
    file("text/javascript; charset=utf-8", true, bundle)
}

/// `GET /docs/swagger-ui.css`
pub async fn style() -> Response {
    let style = include_bytes!("../../assets/swagger-ui/swagger-ui.css.gz");
    file("text/css; charset=utf-8", true, style)
}
