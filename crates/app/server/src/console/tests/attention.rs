//! What waits for a person on its page: set aside, overdue, several at once.

use super::*;

/// A saga of which nobody here has the definition, as it stands after the node set it aside.
async fn unknown(bench: &Bench, uid: &str) -> Uid {
    let journal = bench.engine.journal();
    crate::api::tests::unknown(journal.as_ref(), uid).await;
    let uid = Uid::new(uid);
    until("it is set aside", async || {
        bench.loaded(&uid).await.summary.row.status.as_str() == "needs_attention"
    })
    .await;
    uid
}

#[tokio::test]
async fn a_saga_that_cannot_be_read_is_read_anew_or_closed_by_its_typed_name() {
    let bench = bench().await;
    let uid = unknown(&bench, "u-gone").await;
    for page in ["attention".to_owned(), "sagas/u-gone".to_owned()] {
        let html = bench.get(&page).await.body;
        assert!(html.contains("its definition is not known to this node"), "{page}: {html}");
        assert!(html.contains("parked: definition `gone` version 3"), "{page}: {html}");
        for (what, times) in [("take_up", 1), ("abandon", 1), ("cancel", 0)] {
            let link = format!("/act?do={what}&amp;seen=");
            assert_eq!(html.matches(&link).count(), times, "{page} {what}: {html}");
        }
    }
    let seen = bench.loaded(&uid).await.summary.next_seq;
    let cancel = bench.get(&format!("sagas/u-gone/act?do=cancel&seen={seen}")).await;
    assert!(cancel.status == 409 && cancel.body.contains("read anew or closed"), "{}", cancel.body);

    let (path, mut fields, page) = bench.form(&uid, "do=take_up").await;
    assert!(page.contains("&quot;action&quot;:&quot;retry&quot;") && !page.contains("id=\"name\""), "{page}");
    fields.insert("reason".to_owned(), "the definition was put".to_owned());
    let vain = bench.submit(&path, &fields).await;
    assert!(vain.status == 409 && vain.body.contains("definition `gone`"), "{} {}", vain.status, vain.body);

    let (path, mut fields, page) = bench.form(&uid, "do=abandon").await;
    assert!(page.contains("what it did in the world"), "{page}");
    fields.insert("reason".to_owned(), "nobody has it any more".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 422, "its name is not typed");
    fields.insert("name".to_owned(), "u-gone".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    assert_eq!(bench.submit(&path, &fields).await.status, 303, "the same form sent twice is one action");
    let shown = bench.get("sagas/u-gone").await.body;
    assert!(
        shown.contains("abandoned") && shown.contains("gave it up") && !shown.contains("/act?"),
        "{shown}"
    );
    assert!(bench.get("attention").await.body.contains("Nobody is needed."));
    let audit = bench.engine.journal().audit(0, 10).await.unwrap();
    let last = &audit.last().unwrap().entry;
    assert_eq!(
        (last.who.as_str(), last.action.as_str(), last.reason.as_str()),
        ("local", "abandon", "nobody has it any more")
    );
}

/// "Try again now" of a paused saga is noted, and nothing starts: the page did not say that it is paused.
#[tokio::test]
async fn a_paused_saga_that_needs_a_person_says_so_and_can_be_resumed_there() {
    let bench = bench().await;
    let handle = bench.engine.start("two", json!({"b": "lost"}), StartOptions::id("held")).await.unwrap();
    let uid = handle.uid().clone();
    until("it needs a person", async || {
        bench.loaded(&uid).await.summary.row.status.as_str() == "needs_attention"
    })
    .await;
    let before = bench.get("attention").await.body;
    assert!(!before.contains("paused") && !before.contains("do=resume"), "{before}");
    let (path, mut fields, _) = bench.form(&uid, "do=pause").await;
    fields.insert("reason".to_owned(), "the bank is down".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    let list = bench.get("attention").await.body;
    assert!(list.contains("nothing starts until somebody resumes it"), "{list}");
    assert!(list.contains("do=resume") && list.contains("do=retry"), "{list}");
    assert!(!list.contains("do=abandon"), "{list}");
}

/// "The saga goes forward from there" stood above the button that had a charge refunded.
#[tokio::test]
async fn the_form_of_what_happened_says_that_a_saga_has_turned_back() {
    let bench = bench().await;
    let handle = bench.engine.start("two", json!({"b": "lost"}), StartOptions::id("back")).await.unwrap();
    let uid = handle.uid().clone();
    let stuck = async || bench.loaded(&uid).await.summary.row.status.as_str() == "needs_attention";
    until("it needs a person", &stuck).await;
    let ask = "do=resolve_done&step=b";
    let (_, _, before) = bench.form(&uid, ask).await;
    assert!(!before.contains("has turned back"), "{before}");
    let (path, mut fields, _) = bench.form(&uid, "do=cancel").await;
    fields.insert("reason".to_owned(), "the customer left".to_owned());
    fields.insert("name".to_owned(), "back".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    until("it needs a person again", &stuck).await;
    let (_, _, after) = bench.form(&uid, ask).await;
    assert!(after.contains("This saga has turned back: what you say happened is undone next"), "{after}");
}

/// Locks that were taken away, reloads and filters were links to sagas of these names.
#[tokio::test]
async fn the_audit_links_to_sagas_and_to_nothing_else() {
    let bench = bench().await;
    let uid = "01a21e3c-bc8c-7a0e-a118-8f6aa21b7417";
    for target in ["nightly", "configuration", "{\"id\":\"f1\"}", "order/1", &format!("{uid}/charge")] {
        let line = mainstay_store::journal::Audit {
            who: "ann".to_owned(),
            action: "x".to_owned(),
            target: target.to_owned(),
            reason: String::new(),
            before: String::new(),
            after: String::new(),
            request_id: String::new(),
        };
        bench.engine.journal().put_audit(line).await.unwrap();
    }
    let page = bench.get("audit").await.body;
    assert_eq!(page.matches("href=\"sagas/").count(), 1, "{page}");
    assert!(page.contains(&format!("href=\"sagas/{uid}\"")) && page.contains("nightly"), "{page}");
}

#[tokio::test]
async fn an_overdue_saga_is_listed_counted_and_gone_when_it_ends() {
    let bench = bench().await;
    let handle = bench.engine.start("two", json!({"a": "held"}), StartOptions::id("slow")).await.unwrap();
    crate::api::tests::late(bench.engine.journal().as_ref(), handle.uid().as_str()).await;
    let list = bench.get("attention").await.body;
    assert!(list.contains("The deadline passed after the pivot") && list.contains("late for "), "{list}");
    assert!(list.contains("class=\"item late\"") && list.contains("<span class=\"count\">1"), "{list}");
    let now = bench.get("now").await.body;
    assert!(now.contains("1 saga is overdue"), "{now}");
    assert!(bench.get("sagas?overdue=true").await.body.contains(">slow<"));
    assert!(bench.get("sagas").await.body.contains("overdue"));
    bench.go.notify_one();
    handle.outcome().await.unwrap();
    assert!(bench.get("attention").await.body.contains("Nobody is needed."));
    assert!(!bench.get("sagas?overdue=true").await.body.contains(">slow<"));
}

#[tokio::test]
async fn views_are_links_to_filters_and_the_one_in_force_is_marked() {
    let bench = bench().await;
    bench.settled("two", "stuck", json!({"b": "lost"})).await;
    bench.settled("two", "fine", json!({})).await;
    let all = bench.get("sagas").await.body;
    assert!(all.contains("<a href=\"sagas\" aria-current=\"true\">All</a>"), "{all}");
    let waiting = bench.get("sagas?attention=true").await.body;
    assert!(waiting.contains(">stuck<") && !waiting.contains(">fine<"), "{waiting}");
    assert_eq!(waiting.matches("aria-current=\"true\"").count(), 1, "{waiting}");
}

/// The boxes of *Attention*, as a browser sends them.
fn picks(html: &str) -> Vec<(String, String)> {
    let boxes = html.split("<input type=\"checkbox\"").skip(1).map(|rest| rest.split('>').next().unwrap());
    boxes.map(|b| (values(b, "name")[0].to_owned(), values(b, "value")[0].to_owned())).collect()
}

#[tokio::test]
async fn several_sagas_are_moved_by_one_form_and_each_says_what_came_of_it() {
    let bench = bench().await;
    let mut uids = Vec::new();
    for id in ["one", "two", "three"] {
        uids.push(bench.settled("two", id, json!({"b": "lost"})).await);
    }
    let list = bench.get("attention").await.body;
    let picks = picks(&list);
    assert!(picks.len() == 3 && list.contains("action=\"attention/act\""), "{list}");
    let query: Vec<String> = picks.iter().map(|(name, seen)| format!("{name}={seen}")).collect();
    let page = bench.get(&format!("attention/act?{}", query.join("&"))).await;
    assert_eq!(page.status, 200, "{}", page.body);
    for offered in ["resolve_not_done b", "retry b", "abandon"] {
        assert!(page.body.contains(&format!("value=\"{offered}\"")), "{offered}: {}", page.body);
    }
    for not in ["resolve_done b", "retry_with_input b", "take_up"] {
        assert!(!page.body.contains(&format!("value=\"{not}\"")), "{not}: {}", page.body);
    }
    assert_eq!(page.body.matches("/v1/sagas/").count(), 3, "each by the API");
    // One is moved by somebody else before the form is sent.
    let (path, mut faster, _) = bench.form(&uids[1], "do=resolve_done&step=b").await;
    faster.insert("reason".to_owned(), "the ledger has it".to_owned());
    assert_eq!(bench.submit(&path, &faster).await.status, 303);

    let mut fields = hidden(&page.body);
    let path = format!("{MOUNT}/attention/act");
    assert_eq!(bench.submit(&path, &fields).await.status, 422, "nothing is chosen");
    fields.insert("do".to_owned(), "resolve_not_done b".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 422, "no reason");
    fields.insert("reason".to_owned(), "the ledgers have nothing".to_owned());
    let mut forged = fields.clone();
    forged.insert("form".to_owned(), "0".repeat(64));
    assert_eq!(bench.submit(&path, &forged).await.status, 403);
    for time in ["once", "and again: the same form is one action"] {
        let done = bench.submit(&path, &fields).await;
        assert_eq!(done.status, 200, "{time}: {}", done.body);
        assert!(done.body.contains("Done to 2 of 3 sagas"), "{time}: {}", done.body);
        assert!(done.body.contains("the saga moved on since it was looked at"), "{time}: {}", done.body);
    }
    for (uid, status) in [(&uids[0], "compensated"), (&uids[1], "completed"), (&uids[2], "compensated")] {
        until("it ended", async || bench.loaded(uid).await.summary.row.status.as_str() == status).await;
    }
    let audit = bench.engine.journal().audit(0, 100).await.unwrap();
    let taken = audit
        .iter()
        .filter(|l| l.entry.action == "resolve_not_done" && !l.entry.after.starts_with("refused"));
    assert_eq!(taken.count(), 2, "{audit:?}");
}

#[tokio::test]
async fn if_c06_what_cannot_be_taken_back_of_several_needs_their_number() {
    let mut bench = bench().await;
    let mut query = Vec::new();
    for id in ["one", "two"] {
        let uid = bench.settled("two", id, json!({"b": "lost"})).await;
        let seen = bench.loaded(&uid).await.summary.next_seq;
        query.push(format!("pick.{}={seen}", uid.as_str()));
    }
    // One that needs something else has little in common with them.
    let other = bench.settled("two", "other", json!({"b": "no", "undo": "refused"})).await;
    let odd = format!("{}&pick.{}=1", query.join("&"), other.as_str());
    let page = bench.get(&format!("attention/act?{odd}")).await.body;
    assert!(page.contains("value=\"abandon\"") && !page.contains("value=\"retry b\""), "{page}");
    assert!(page.contains("It moved on since you saw it"), "{page}");
    let none = bench.get("attention/act").await;
    assert!(none.status == 200 && none.body.contains("No saga is chosen"), "{}", none.body);

    let path = format!("{MOUNT}/attention/act");
    let mut fields = hidden(&bench.get(&format!("attention/act?{}", query.join("&"))).await.body);
    fields.insert("do".to_owned(), "abandon".to_owned());
    fields.insert("reason".to_owned(), "written off".to_owned());
    for wrong in ["", "3", "two"] {
        fields.insert("count".to_owned(), wrong.to_owned());
        let refused = bench.submit(&path, &fields).await;
        assert!(
            refused.status == 422 && refused.body.contains("how many sagas this is for, 2"),
            "{}",
            refused.body
        );
    }
    fields.insert("count".to_owned(), "2".to_owned());
    let done = bench.submit(&path, &fields).await.body;
    assert!(done.contains("Done to 2 of 2 sagas"), "{done}");
    // Who may look sees no boxes, and is refused.
    bench.caller = Caller { name: "r".to_owned(), scope: Scope::Read, namespaces: Vec::new() };
    assert!(!bench.get("attention").await.body.contains("checkbox"));
    assert_eq!(bench.get(&format!("attention/act?{}", query.join("&"))).await.status, 403);
    assert_eq!(bench.submit(&path, &fields).await.status, 403);
    // More than a page shows, and what is no choice.
    bench.caller = Caller::anonymous();
    let many: Vec<String> = (0..21).map(|n| format!("pick.u{n}=1")).collect();
    for bad in [many.join("&"), "pick.u=x".to_owned(), "else=1".to_owned(), "do=run_again".to_owned()] {
        assert_eq!(bench.get(&format!("attention/act?{bad}")).await.status, 400, "{bad}");
    }
}
