//! The part of the admin interface that is about policies: who decides, and another in his place.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http_body_util::LengthLimitError;
use pointsman_core::ClusterId;
use pointsman_plugin::{EngineLimits, LoadError};

use crate::plan::PluginId;
use crate::problem::suggestion;
use crate::runtime;
use crate::service::Service;
use crate::swap::answer::SwapAnswer;
use crate::swap::list::PolicyList;
use crate::swap::report::{TrialReport, slots_of};
use crate::swap::trial::{self, Way};
use crate::swap::{self, File, Refusal};

/// What only shows something.
pub(super) fn looking() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/policies", get(list))
        .route("/v1/clusters/{cluster}/trial", get(show_trial))
}

/// What changes something.
pub(super) fn changing() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/policies/{name}", post(swap_everywhere))
        .route("/v1/clusters/{cluster}/policy", post(swap_one))
        .route("/v1/clusters/{cluster}/policy/rollback", post(roll_back))
        .route("/v1/clusters/{cluster}/policy/promote", post(promote))
        .route("/v1/clusters/{cluster}/policy/abort", post(abort))
        .route("/v1/clusters/{cluster}/policy/canary", post(share))
}

async fn list(State(service): State<Arc<Service>>) -> Json<PolicyList> {
    Json(PolicyList::new(&service))
}

async fn show_trial(
    State(service): State<Arc<Service>>,
    Path(cluster): Path<String>,
) -> Result<Json<TrialReport>, Refusal> {
    let cluster = find_cluster(&service, &cluster)?;
    trial::report(&service, cluster).map(Json)
}

async fn swap_everywhere(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<SwapAnswer>>, Refusal> {
    let bytes = read(&headers, body).await?;
    let options = Options::of(&query.unwrap_or_default())?;
    if options.way.is_some() {
        let what = "a trial is of one cluster; send it to /v1/clusters/NAME/policy";
        return Err(Refusal::Query(what.to_owned()));
    }
    let clusters = find_users(&service, &name)?;
    let file = options.file(bytes);
    aside(move || swap::swap(&service, &clusters, &file)).await
}

async fn swap_one(
    State(service): State<Arc<Service>>,
    Path(cluster): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let bytes = read(&headers, body).await?;
    let options = Options::of(&query.unwrap_or_default())?;
    let cluster = find_cluster(&service, &cluster)?;
    let file = options.file(bytes);
    if let Some(way) = options.way {
        let report = aside(move || trial::begin(&service, cluster, &file, way)).await;
        return report.map(IntoResponse::into_response);
    }
    let answers = aside(move || swap::swap(&service, &[cluster], &file)).await;
    answers.map(IntoResponse::into_response)
}

async fn roll_back(
    State(service): State<Arc<Service>>,
    Path(cluster): Path<String>,
) -> Result<Json<SwapAnswer>, Refusal> {
    let cluster = find_cluster(&service, &cluster)?;
    aside(move || swap::roll_back(&service, cluster)).await
}

async fn promote(
    State(service): State<Arc<Service>>,
    Path(cluster): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<SwapAnswer>, Refusal> {
    let force = match query.as_deref().unwrap_or_default() {
        "" | "force=false" => false,
        "force" | "force=true" => true,
        other => {
            return Err(Refusal::Query(format!("there is no \"{other}\"; known is \"force\"")));
        }
    };
    let cluster = find_cluster(&service, &cluster)?;
    aside(move || swap::promote(&service, cluster, force)).await
}

async fn abort(
    State(service): State<Arc<Service>>,
    Path(cluster): Path<String>,
) -> Result<Json<TrialReport>, Refusal> {
    let cluster = find_cluster(&service, &cluster)?;
    aside(move || trial::abort(&service, cluster)).await
}

async fn share(
    State(service): State<Arc<Service>>,
    Path(cluster): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<TrialReport>, Refusal> {
    let Some(Way::Canary(slots)) = Options::of(&query.unwrap_or_default())?.way else {
        return Err(Refusal::Query("say which share, as in ?canary=10".to_owned()));
    };
    let cluster = find_cluster(&service, &cluster)?;
    aside(move || trial::share(&service, cluster, slots)).await
}

/// Walks on a thread of their own, because they wait for workers.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<Json<T>, Refusal> {
    runtime::aside("policy-swap", work).await?.map(Json)
}

/// What a request may say beside the file.
#[derive(Debug, Default, PartialEq)]
struct Options {
    way: Option<Way>,
    lift_quarantine: bool,
}

impl Options {
    fn of(query: &str) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            let wrong = || Refusal::Query(format!("\"{value}\" is no value of \"{key}\""));
            let way = match key {
                "shadow_ms" => {
                    let millis = value.parse().ok().filter(|millis| *millis > 0);
                    Way::Shadow(Duration::from_millis(millis.ok_or_else(wrong)?))
                }
                "canary" => {
                    let percent = value.parse().ok().and_then(slots_of);
                    Way::Canary(percent.ok_or_else(|| {
                        Refusal::Query(format!("\"{value}\" is no share; write 0.01 to 100"))
                    })?)
                }
                "lift_quarantine" => {
                    options.lift_quarantine = value.parse().map_err(|_| wrong())?;
                    continue;
                }
                _ => {
                    let hint = suggestion(key, ["shadow_ms", "canary", "lift_quarantine"]);
                    return Err(Refusal::Query(format!("there is no \"{key}\"{hint}")));
                }
            };
            if options.way.replace(way).is_some() {
                return Err(Refusal::Query("a trial is a shadow or a canary, not both".to_owned()));
            }
        }
        Ok(options)
    }

    fn file(&self, bytes: Vec<u8>) -> File {
        File { bytes, lift_quarantine: self.lift_quarantine }
    }
}

/// Reads the file. This comes before anything else is looked at: whoever is still sending does not
/// hear an answer that comes sooner.
async fn read(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Refusal> {
    let bytes_max = EngineLimits::default().module_bytes_max;
    let told = headers.get(header::CONTENT_LENGTH);
    let told = told.and_then(|told| told.to_str().ok()?.parse().ok()).unwrap_or(0);
    let too_large = || LoadError::TooLarge { bytes: told.max(bytes_max + 1), bytes_max };
    if told > bytes_max {
        return Err(too_large().into());
    }
    match to_bytes(body, bytes_max).await {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) if is_length_limit(&error) => Err(too_large().into()),
        Err(error) => {
            let what = format!("the file did not come whole ({error}); send it again");
            Err(Refusal::Query(what))
        }
    }
}

/// Whether a body was refused because of its length, and not because it broke off or was malformed.
fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

pub(super) fn find_cluster(service: &Service, name: &str) -> Result<ClusterId, Refusal> {
    let setup = service.setup();
    let clusters = || (0..).map(ClusterId).zip(&setup.plan.clusters).filter(|(_, it)| !it.removed);
    let found = clusters().find(|(_, cluster)| cluster.name == name);
    found.map(|(id, _)| id).ok_or_else(|| {
        let hint = suggestion(name, clusters().map(|(_, cluster)| &*cluster.name));
        Refusal::Unknown { what: "cluster", name: name.to_owned(), hint }
    })
}

/// The clusters that use a policy. One that nobody uses has nothing to be swapped.
fn find_users(service: &Service, name: &str) -> Result<Vec<ClusterId>, Refusal> {
    let setup = service.setup();
    let plugins = || (0..).map(PluginId).zip(&setup.plan.plugins).filter(|(_, it)| !it.removed);
    let Some((plugin, _)) = plugins().find(|(_, plugin)| plugin.name == name) else {
        let hint = suggestion(name, plugins().map(|(_, plugin)| &*plugin.name));
        return Err(Refusal::Unknown { what: "plugin policy", name: name.to_owned(), hint });
    };
    let users = setup.clusters_of(plugin);
    if users.is_empty() {
        return Err(Refusal::Query(format!("no cluster uses policy \"{name}\"")));
    }
    Ok(users)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Unknown { .. } => StatusCode::NOT_FOUND,
            Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::Load(_)
            | Self::Refused(_)
            | Self::Compile(_)
            | Self::Guest { .. }
            | Self::Rehearsal { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Native(_)
            | Self::Busy(_)
            | Self::Quarantined(_)
            | Self::NothingBefore(_)
            | Self::NoTrial(_)
            | Self::Untried(_) => StatusCode::CONFLICT,
            Self::Draining | Self::Silent(_) | Self::System(_) | Self::Engine(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        (code, format!("{self}\n")).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_what_is_none_is_refused() {
        let shadow = Options::of("shadow_ms=30000&lift_quarantine").expect("options");
        assert_eq!(shadow.way, Some(Way::Shadow(Duration::from_secs(30))));
        assert!(shadow.lift_quarantine);
        let canary = Options::of("canary=2.5").expect("options");
        assert_eq!(canary, Options { way: Some(Way::Canary(250)), lift_quarantine: false });
        assert_eq!(Options::of("").expect("none"), Options::default());
        for (query, expected) in [
            ("canary=0", "\"0\" is no share; write 0.01 to 100"),
            ("shadow_ms=soon", "\"soon\" is no value of \"shadow_ms\""),
            ("canary=1&shadow_ms=5", "a trial is a shadow or a canary, not both"),
            ("canari=1", "there is no \"canari\"; did you mean \"canary\"?"),
        ] {
            assert_eq!(Options::of(query).expect_err(query).to_string(), expected);
        }
    }
}
