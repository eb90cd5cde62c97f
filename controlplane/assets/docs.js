// Asks for the document with the token that was typed in, and lets Swagger UI send it with each request. The token
// stays in this page's memory.
document.getElementById("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const authorization = "Bearer " + document.getElementById("token").value.trim();
  const said = document.getElementById("said");
  const answer = await fetch("/v1/openapi.json", { headers: { authorization } });
  const document_ = await answer.json();
  if (!answer.ok) {
    said.textContent = document_.detail + ": " + document_.cure;
    return;
  }
  said.textContent = "";
  SwaggerUIBundle({
    spec: document_,
    dom_id: "#api",
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis],
    requestInterceptor: (request) => {
      request.headers.authorization = authorization;
      return request;
    },
  });
});
