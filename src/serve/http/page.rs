//! The chat page: one file, and what the browser may do with it.

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("../page/index.html");

/// The policy: the page's own script runs and no other, and it talks to this server only.
pub(super) fn policy() -> String {
    let scripts =
        scripts(PAGE).map(|script| format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(script))));
    format!(
        "default-src 'none'; script-src{}; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        scripts.collect::<String>()
    )
}

/// What stands between `<script ...>` and `</script>`.
fn scripts(page: &str) -> impl Iterator<Item = &str> {
    let opened = page.split("<script").skip(1);
    opened.filter_map(|rest| Some(rest.split_once('>')?.1.split_once("</script>")?.0))
}

/// The page under `policy`.
pub(super) fn response(policy: &str) -> Response {
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, policy)];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_lets_the_pages_scripts_run_and_no_others() {
        assert_eq!(
            scripts("<p><script>a()</script>x<script type=\"module\">b</script>").collect::<String>(),
            "a()b"
        );
        let count = policy().matches("'sha256-").count();
        assert_eq!(count, PAGE.matches("</script>").count());
        // Handlers in attributes would need 'unsafe-inline'.
        assert!(!PAGE.contains(" onclick=") && !PAGE.contains(" onload=") && !PAGE.contains(" onsubmit="));
    }
}
