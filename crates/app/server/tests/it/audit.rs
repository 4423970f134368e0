//! The audit can be exported, and a changed, missing or reordered line is found.

use std::path::Path;

use crate::harness::{Node, Request, run, stderr, stdout};
use crate::recorder::Recorder;

fn export(server: &str) -> String {
    let output = run(&["audit", "export", "--server", server]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn verify(file: &Path) -> (Option<i32>, String) {
    let output = run(&["audit", "verify", file.to_str().unwrap()]);
    (output.status.code(), stdout(&output) + &stderr(&output))
}

#[test]
fn sec_25_the_chain_of_the_audit_is_verified_by_a_command() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::content();
    let node = Node::start(&dir.path().join("data"), &["--allow-participant", &service.origin]);
    let server = format!("http://{}", node.address);
    for n in 0..5 {
        let name = format!("order-{n}");
        let text = crate::end_to_end::order(&service.origin)
            .replace("name = \"order\"", &format!("name = \"{name}\""));
        let put = Request::new("PUT", &format!("/v1/definitions/{name}"))
            .header("content-type", "application/toml");
        assert_eq!(node.send(&put.body(text)).status, 201);
    }
    let live = run(&["audit", "verify", "--server", &server]);
    assert!(live.status.success(), "{}", stderr(&live));
    assert!(stdout(&live).contains("5 lines"), "{}", stdout(&live));
    let whole = export(&server);
    assert_eq!(whole.lines().count(), 5);
    let file = dir.path().join("audit.jsonl");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        verify(&file)
    };
    assert_eq!(check(&whole).0, Some(0));
    let lines: Vec<&str> = whole.lines().collect();
    let changed = whole.replacen("order-2/1", "order-9/1", 1);
    let missing = [&lines[..2], &lines[3..]].concat().join("\n");
    let swapped = [lines[0], lines[2], lines[1], lines[3], lines[4]].join("\n");
    let reason = whole.replacen("\"reason\":\"\"", "\"reason\":\"harmless\"", 1);
    for (what, text) in [("changed", changed), ("missing", missing), ("swapped", swapped), ("reason", reason)]
    {
        assert_ne!(text, whole, "{what}");
        let (code, said) = check(&text);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains("MS0016"), "{what}: {said}");
    }
    // A cut at the end looks like an earlier export; what is there is still as it was written.
    assert_eq!(check(&lines[..3].join("\n")).0, Some(0));
    let (code, said) = check("no json\n");
    assert!(code == Some(1) && said.contains("MS0016"), "{said}");
}
