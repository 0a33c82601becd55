//! The part of the admin interface that is about endpoints: who serves in a cluster, and changes
//! to that.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};

use super::policies::find_cluster;
use crate::endpoints::{self, Request, Verb};
use crate::service::Service;
use crate::status::Endpoint;
use crate::swap::Refusal;

const PATH: &str = "/v1/clusters/{cluster}/endpoints";

/// Why endpoints are not shown or changed.
pub(super) enum Denial {
    /// There is no such cluster.
    Cluster(Refusal),
    /// What speaks against it.
    Problems(Vec<String>),
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self::Cluster(refusal)
    }
}

/// What only shows something.
pub(super) fn looking() -> Router<Arc<Service>> {
    Router::new().route(PATH, get(list))
}

/// What changes something.
pub(super) fn changing() -> Router<Arc<Service>> {
    Router::new().route(PATH, post(add).patch(set).delete(remove))
}

type Answer = Result<Json<Vec<Endpoint>>, Denial>;

async fn list(State(service): State<Arc<Service>>, Path(cluster): Path<String>) -> Answer {
    let cluster = find_cluster(&service, &cluster)?;
    Ok(Json(endpoints::list(&service, cluster)))
}

async fn add(service: State<Arc<Service>>, cluster: Path<String>, body: Bytes) -> Answer {
    change(&service, &cluster, Verb::Add, &body)
}

async fn set(service: State<Arc<Service>>, cluster: Path<String>, body: Bytes) -> Answer {
    change(&service, &cluster, Verb::Set, &body)
}

async fn remove(service: State<Arc<Service>>, cluster: Path<String>, body: Bytes) -> Answer {
    change(&service, &cluster, Verb::Remove, &body)
}

fn change(service: &Service, cluster: &str, verb: Verb, body: &[u8]) -> Answer {
    let cluster = find_cluster(service, cluster)?;
    let request: Request = serde_json::from_slice(body).map_err(|error| {
        let advice = "send JSON such as {\"addresses\": [\"10.0.0.1:80\"]}";
        Denial::Problems(vec![format!("the body is no request: {error}; {advice}")])
    })?;
    endpoints::change(service, cluster, verb, &request).map_err(Denial::Problems)?;
    Ok(Json(endpoints::list(service, cluster)))
}

impl IntoResponse for Denial {
    fn into_response(self) -> Response {
        match self {
            Self::Cluster(refusal) => refusal.into_response(),
            Self::Problems(problems) => {
                let lines: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
                (StatusCode::BAD_REQUEST, lines).into_response()
            }
        }
    }
}
