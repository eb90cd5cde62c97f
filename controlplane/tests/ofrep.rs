//! The OpenFeature protocol, held against its published schema (`ofrep.json`), and rollouts over the API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use api_support::{Server, answer};
use serde_json::{Value, json};

const ONE: &str = "/ofrep/v1/evaluate/flags/dwcp_v3_hde";
const ALL: &str = "/ofrep/v1/evaluate/flags";

/// What of JSON Schema the protocol uses. Of `oneOf` at least one is asked for: as published, `codeDefaultFlag` fits
/// every object, so that no flag with a value could fit exactly one.
fn fits(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    if let Some(path) = schema["$ref"].as_str() {
        return fits(
            value,
            root.pointer(path.strip_prefix('#').unwrap()).unwrap(),
            root,
        );
    }
    let wrong = |what: &str| Err(format!("{value} {what} {schema}"));
    let right = match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some(other) => panic!("{other}"),
    };
    if !right {
        return wrong("is of another type than");
    }
    if let Some(all) = schema["enum"].as_array()
        && !all.contains(value)
    {
        return wrong("is none of");
    }
    for key in schema["required"].as_array().into_iter().flatten() {
        if value.get(key.as_str().unwrap()).is_none() {
            return wrong("lacks a key of");
        }
    }
    if let Some(object) = value.as_object() {
        for (key, inner) in object {
            let known = &schema["properties"][key];
            let other = &schema["additionalProperties"];
            if known.is_object() {
                fits(inner, known, root)?;
            } else if other.is_object() {
                fits(inner, other, root)?;
            }
        }
    }
    for inner in value.as_array().into_iter().flatten() {
        fits(inner, &schema["items"], root)?;
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fits(value, part, root)?;
    }
    if let Some(some) = schema["oneOf"].as_array()
        && !some.iter().any(|part| fits(value, part, root).is_ok())
    {
        return wrong("fits none of");
    }
    Ok(())
}

fn published(value: &Value, name: &str) {
    let root: Value = serde_json::from_str(include_str!("ofrep.json")).unwrap();
    let schema = &root["components"]["schemas"][name];
    assert!(schema.is_object(), "{name}");
    fits(value, schema, &root).unwrap();
}

fn whom(node: &str) -> Value {
    json!({ "context": { "targetingKey": node, "region": "x" } })
}

#[test]
fn the_check_refuses_what_does_not_fit() {
    let root: Value = serde_json::from_str(include_str!("ofrep.json")).unwrap();
    let schema = |name: &str| root["components"]["schemas"][name].clone();
    for (value, name) in [
        (
            json!({ "key": "a", "value": true, "reason": "LUCK" }),
            "serverEvaluationSuccess",
        ),
        (
            json!({ "value": true, "reason": "SPLIT" }),
            "serverEvaluationSuccess",
        ),
        (json!({ "key": "a", "errorCode": "X" }), "flagNotFound"),
        (json!({ "flags": [{ "key": 1 }] }), "bulkEvaluationSuccess"),
        (json!({ "flags": {} }), "bulkEvaluationSuccess"),
    ] {
        assert!(
            fits(&value, &schema(name), &root).is_err(),
            "{name} {value}"
        );
    }
}

#[tokio::test]
async fn sdks_read_flags_in_the_published_form() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let set = |body: Value| server.post("/v1/feature-flags", body);
    // The bucket of node-000000 under dwcp_v3_hde is 37037, that of node-000001 is 26301.
    let (status, _) = set(json!({ "feature": "dwcp_v3_hde", "percentage": 30 })).await;
    assert_eq!(status, 200);
    for (node, value) in [("node-000000", false), ("node-000001", true)] {
        let (status, found) = server.post(ONE, whom(node)).await;
        assert_eq!(status, 200, "{found}");
        published(&found, "serverEvaluationSuccess");
        let variant = if value { "v3" } else { "v1" };
        assert_eq!(found["value"], value);
        assert_eq!(found["variant"], variant);
        assert_eq!(found["reason"], "SPLIT");
    }
    let (_, here) = server.get("/v1/feature-flags/dwcp_v3_hde").await;
    let (_, found) = server.post(ONE, whom("node-000000")).await;
    assert_eq!(here["version_here"], found["variant"]);
    assert_eq!(here["bucket"], found["metadata"]["bucket"]);

    let exclude = json!({ "feature": "dwcp_v3_hde", "nodes": ["node-000001"] });
    server.post("/v1/feature-flags/exclude", exclude).await;
    let (_, found) = server.post(ONE, whom("node-000001")).await;
    assert_eq!(
        (&found["value"], &found["reason"]),
        (&json!(false), &json!("TARGETING_MATCH"))
    );
    let (_, found) = server
        .post("/ofrep/v1/evaluate/flags/dwcp_v3_amst", whom("a"))
        .await;
    assert_eq!(
        (&found["value"], &found["reason"]),
        (&json!(true), &json!("STATIC"))
    );
    let (_, found) = server
        .post("/ofrep/v1/evaluate/flags/dwcp_v3_pba", whom("a"))
        .await;
    assert_eq!(
        (&found["value"], &found["reason"]),
        (&json!(false), &json!("DISABLED"))
    );

    let bulk = || server.request("POST", ALL).json(&whom("node-000000"));
    let response = bulk().send().await.unwrap();
    let tag = response.headers()["etag"].to_str().unwrap().to_owned();
    let flags: Value = response.json().await.unwrap();
    published(&flags, "bulkEvaluationSuccess");
    assert_eq!(flags["flags"].as_array().unwrap().len(), 6);
    for known in [
        tag.clone(),
        tag.trim_matches('"').to_owned(),
        format!("W/{tag}, \"x\""),
    ] {
        let again = bulk().header("if-none-match", known).send().await.unwrap();
        assert_eq!(again.status().as_u16(), 304);
        assert!(again.text().await.unwrap().is_empty());
    }
    server
        .post("/v1/feature-flags/force-v1", json!({ "force_v1": true }))
        .await;
    let changed = bulk().header("if-none-match", tag).send().await.unwrap();
    assert_eq!(changed.status().as_u16(), 200);
    let (_, found) = server
        .post("/ofrep/v1/evaluate/flags/dwcp_v3_amst", whom("a"))
        .await;
    assert_eq!(
        (&found["value"], &found["reason"]),
        (&json!(false), &json!("DISABLED"))
    );
    assert_eq!(found["metadata"]["forceV1"], true);
    server.stop().await;
}

#[tokio::test]
async fn refusals_have_the_published_form_and_a_look_is_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (status, found) = server
        .post("/ofrep/v1/evaluate/flags/none", whom("a"))
        .await;
    assert_eq!(status, 404);
    published(&found, "flagNotFound");
    for (body, code) in [
        ("{", "PARSE_ERROR"),
        ("[]", "PARSE_ERROR"),
        ("{}", "INVALID_CONTEXT"),
        ("{\"context\":1}", "INVALID_CONTEXT"),
        ("{\"context\":{}}", "TARGETING_KEY_MISSING"),
        (
            "{\"context\":{\"targetingKey\":\"\"}}",
            "TARGETING_KEY_MISSING",
        ),
        ("{\"context\":{\"targetingKey\":7}}", "INVALID_CONTEXT"),
        (
            "{\"context\":{\"targetingKey\":\"a b\"}}",
            "INVALID_CONTEXT",
        ),
    ] {
        let (status, found) = answer(server.request("POST", ONE).body(body)).await;
        assert_eq!(
            (status, found["errorCode"].as_str()),
            (400, Some(code)),
            "{body}"
        );
        published(&found, "evaluationFailure");
        let (status, found) = answer(server.request("POST", ALL).body(body)).await;
        assert_eq!(status, 400);
        published(&found, "bulkEvaluationFailure");
    }
    let stranger = server.http.post(server.url(ALL)).json(&whom("a"));
    assert_eq!(answer(stranger).await.0, 401);
    let asked = json!({ "name": "sdk", "scope": "read" });
    let (_, made) = server.post("/v1/tokens", asked).await;
    let token = made["token"].as_str().or(made["secret"].as_str()).unwrap();
    let read = server
        .http
        .post(server.url(ALL))
        .bearer_auth(token)
        .json(&whom("a"));
    assert_eq!(answer(read).await.0, 200);
    let (_, audit) = server.get("/v1/audit").await;
    let paths = audit["entries"].as_array().unwrap().iter();
    assert!(
        paths
            .clone()
            .all(|it| !it["path"].as_str().unwrap().starts_with("/ofrep"))
    );
    assert!(paths.count() > 0);
    server.stop().await;
}

#[tokio::test]
async fn a_rollout_is_begun_held_steered_and_ended_over_the_api() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]).await;
    let (status, refused) = server
        .post("/v1/rollouts", json!({ "feature": "dwcp_v3_hde" }))
        .await;
    assert_eq!(status, 422, "10 % holds nobody here: {refused}");
    assert!(
        refused["detail"].as_str().unwrap().contains("37.037"),
        "{refused}"
    );
    let plan = json!({ "feature": "dwcp_v3_hde", "phases": [
        { "percentage": 40, "min_time_s": 0 }, { "percentage": 100 },
    ] });
    let key = |request: reqwest::RequestBuilder| request.header("idempotency-key", "k1");
    let begin = || key(server.request("POST", "/v1/rollouts").json(&plan));
    let (status, made) = answer(begin()).await;
    assert_eq!(status, 201, "{made}");
    let (_, again) = answer(begin()).await;
    assert_eq!(made["id"], again["id"], "asked twice, begun once");
    let path = format!("/v1/rollouts/{}", made["id"].as_str().unwrap());
    let hold = |it: &Value| {
        it["good_since_unix_ms"].is_null()
            && it["why"]
                .as_str()
                .is_some_and(|why| why.contains("too little"))
    };
    let held = server.until(&path, hold).await;
    assert_eq!(
        (&held["stage"], &held["phase"]),
        (&json!("running"), &json!(0))
    );
    assert_eq!(held["percentage"], 40.0);
    assert_eq!(held["nodes"][0]["node"], "node-000000");
    assert_eq!(held["nodes"][0]["part"], "in_share");
    assert_eq!(held["verdict"]["judgements"].as_array().unwrap().len(), 9);
    let (_, flag) = server.get("/v1/feature-flags/dwcp_v3_hde").await;
    assert_eq!(flag["percentage"], 40);
    let (status, refused) = server
        .post(
            "/v1/feature-flags",
            json!({ "feature": "dwcp_v3_hde", "percentage": 90 }),
        )
        .await;
    assert_eq!(status, 409, "{refused}");

    let order = |what: &str| answer(server.request("POST", &format!("{path}/{what}")));
    assert_eq!(order("pause").await.1["stage"], "paused");
    assert_eq!(order("pause").await.0, 409);
    assert_eq!(order("resume").await.1["stage"], "running");
    let (_, ended) = order("abort").await;
    assert_eq!(
        (&ended["stage"], &ended["percentage"]),
        (&json!("aborted"), &json!(0.0))
    );
    server
        .until("/v1/feature-flags/dwcp_v3_hde", |flag| {
            flag["percentage"] == 0
        })
        .await;
    let (_, decided) = server.get(&format!("{path}/decisions?limit=2")).await;
    let first = &decided["decisions"][0];
    assert!(
        first["decision"]["why"]
            .as_str()
            .unwrap()
            .starts_with("Abort by"),
        "{first}"
    );
    assert!(decided["next"].is_string());
    let (_, all) = server.get("/v1/rollouts").await;
    assert_eq!(all["rollouts"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/rollouts/none").await.0, 404);
    server.stop().await;
}
