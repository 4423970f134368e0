//! The messages of etcd, and short ways to write them.

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod generated {
    tonic::include_proto!("etcdserverpb");
}

/// What we keep beside the locks.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
pub(crate) mod record {
    tonic::include_proto!("mainstay.lease.v1");
}

pub(crate) use generated::AuthenticateRequest;
#[cfg(test)]
pub(crate) use generated::Event;
pub(crate) use generated::auth_client::AuthClient;
pub(crate) use generated::compare::{CompareResult, CompareTarget, TargetUnion};
pub(crate) use generated::event::EventType;
pub(crate) use generated::kv_client::KvClient;
pub(crate) use generated::lease_client::LeaseClient;
pub(crate) use generated::maintenance_client::MaintenanceClient;
pub(crate) use generated::range_request::{SortOrder, SortTarget};
pub(crate) use generated::request_op::Request;
pub(crate) use generated::response_op::Response;
pub(crate) use generated::watch_client::WatchClient;
pub(crate) use generated::watch_create_request::FilterType;
pub(crate) use generated::watch_request::RequestUnion;
pub(crate) use generated::{
    Compare, DeleteRangeRequest, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, StatusRequest,
    TxnRequest, TxnResponse, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// The first key behind all that start with `prefix`, which is not empty; text has no byte of 0xff.
pub(crate) fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

pub(crate) fn range(range: RangeRequest) -> RequestOp {
    op(Request::RequestRange(range))
}

pub(crate) fn get(key: Vec<u8>) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key, ..RangeRequest::default() }))
}

/// Everything under `prefix`, first created first.
pub(crate) fn all(prefix: Vec<u8>) -> RequestOp {
    let (sort_order, sort_target) = (SortOrder::Ascend.into(), SortTarget::Create.into());
    op(Request::RequestRange(RangeRequest {
        range_end: behind(&prefix),
        key: prefix,
        sort_order,
        sort_target,
        ..RangeRequest::default()
    }))
}

/// The key under `prefix` that was created last before revision `before`, without its value.
pub(crate) fn last_before(prefix: Vec<u8>, before: i64) -> RequestOp {
    let (sort_order, sort_target) = (SortOrder::Descend.into(), SortTarget::Create.into());
    op(Request::RequestRange(RangeRequest {
        range_end: behind(&prefix),
        key: prefix,
        limit: 1,
        keys_only: true,
        max_create_revision: before - 1,
        sort_order,
        sort_target,
        ..RangeRequest::default()
    }))
}

/// How many keys are under `prefix`.
pub(crate) fn count(prefix: Vec<u8>) -> RequestOp {
    let range_end = behind(&prefix);
    op(Request::RequestRange(RangeRequest {
        key: prefix,
        range_end,
        count_only: true,
        ..RangeRequest::default()
    }))
}

pub(crate) fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    op(Request::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() }))
}

/// Writes a key and tells what it was before.
pub(crate) fn replace(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    op(Request::RequestPut(PutRequest { key, value, lease, prev_kv: true, ..PutRequest::default() }))
}

/// Changes the value of a key that lives on with its lease.
pub(crate) fn change(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    op(Request::RequestPut(PutRequest { key, value, ignore_lease: true, ..PutRequest::default() }))
}

pub(crate) fn delete(key: Vec<u8>) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }))
}

pub(crate) fn nested(txn: TxnRequest) -> RequestOp {
    op(Request::RequestTxn(txn))
}

fn compare(result: CompareResult, target: CompareTarget, key: Vec<u8>, value: TargetUnion) -> Compare {
    let (result, target) = (result.into(), target.into());
    Compare { result, target, key, target_union: Some(value), range_end: Vec::new() }
}

/// The key was created at this revision and lives since; 0: it is not there.
pub(crate) fn is_created(key: Vec<u8>, revision: i64) -> Compare {
    compare(CompareResult::Equal, CompareTarget::Create, key, TargetUnion::CreateRevision(revision))
}

/// The key was written last at this revision; 0: it is not there.
pub(crate) fn is_written(key: Vec<u8>, revision: i64) -> Compare {
    compare(CompareResult::Equal, CompareTarget::Mod, key, TargetUnion::ModRevision(revision))
}

/// No key under `prefix` was created after `revision`; after 0: there is none.
pub(crate) fn none_since(prefix: Vec<u8>, revision: i64) -> Compare {
    let end = behind(&prefix);
    let value = TargetUnion::CreateRevision(revision.saturating_add(1));
    Compare { range_end: end, ..compare(CompareResult::Less, CompareTarget::Create, prefix, value) }
}

/// The key was not written after `revision`.
pub(crate) fn is_as_of(key: Vec<u8>, revision: i64) -> Compare {
    let value = TargetUnion::ModRevision(revision.saturating_add(1));
    compare(CompareResult::Less, CompareTarget::Mod, key, value)
}

/// No key under `prefix` was written after `revision`; after 0: there is none.
pub(crate) fn none_written_since(prefix: Vec<u8>, revision: i64) -> Compare {
    Compare { range_end: behind(&prefix), ..is_as_of(prefix, revision) }
}

/// The key is attached to this lease.
pub(crate) fn is_of(key: Vec<u8>, lease: i64) -> Compare {
    compare(CompareResult::Equal, CompareTarget::Lease, key, TargetUnion::Lease(lease))
}

/// The key is there and its value is smaller, byte by byte.
pub(crate) fn is_below(key: Vec<u8>, value: Vec<u8>) -> Compare {
    compare(CompareResult::Less, CompareTarget::Value, key, TargetUnion::Value(value))
}

/// The revision of a reply.
pub(crate) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |h| h.revision)
}

/// The keys that one part of a transaction found.
pub(crate) fn found(part: Option<ResponseOp>) -> Vec<KeyValue> {
    match part.and_then(|p| p.response) {
        Some(Response::ResponseRange(range)) => range.kvs,
        _ => Vec::new(),
    }
}

/// The key that one part of a transaction wrote, as it was before.
pub(crate) fn replaced(part: Option<ResponseOp>) -> Option<KeyValue> {
    match part.and_then(|p| p.response) {
        Some(Response::ResponsePut(put)) => put.prev_kv,
        _ => None,
    }
}

/// How many keys one part of a transaction counted.
pub(crate) fn counted(part: Option<ResponseOp>) -> i64 {
    match part.and_then(|p| p.response) {
        Some(Response::ResponseRange(range)) => range.count,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::behind;

    #[test]
    fn a_range_ends_behind_its_prefix() {
        assert_eq!(behind(b"a/"), b"a0");
        assert_eq!(behind(b"a\0"), b"a\x01");
    }
}
