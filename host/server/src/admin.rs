//! The admin interface: HTTP over the Unix socket, and over a loopback address if one is given.
//!
//! It asks nobody who they are. The socket is its owner's alone, so what changes something is
//! answered there and nowhere else; an address that others could reach is refused when the
//! configuration is read, but whoever is on this machine may look.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get};
use tokio::net::{TcpListener, UnixListener};

mod endpoints;
mod policies;

use crate::flows::{FlowId, Page, Query, Shown};
use crate::metrics;
use crate::runtime;
use crate::service::{FlowsError, Service};
use crate::status::Status;

/// Serves on the Unix socket.
pub fn serve_unix(listener: UnixListener, service: Arc<Service>) {
    runtime::spawn(async {
        if let Err(error) = axum::serve(listener, changing(service)).await {
            tracing::error!(%error, "the admin socket has ended");
        }
    });
}

/// Serves on a loopback address.
pub fn serve_http(listener: TcpListener, service: Arc<Service>) {
    runtime::spawn(async {
        if let Err(error) = axum::serve(listener, looking(service)).await {
            tracing::error!(%error, "the admin address has ended");
        }
    });
}

/// What only shows something.
fn looking(service: Arc<Service>) -> Router {
    router().with_state(service)
}

/// That, and what changes something.
fn changing(service: Arc<Service>) -> Router {
    let changing = policies::changing().route("/v1/flows/{id}", delete(forget));
    let changing = changing.merge(endpoints::changing());
    router().merge(changing).with_state(service)
}

fn router() -> Router<Arc<Service>> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/{id}", get(flow))
        .merge(policies::looking())
        .merge(endpoints::looking())
}

async fn metrics(State(service): State<Arc<Service>>) -> impl IntoResponse {
    let view = service.view().await;
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&view))
}

/// Nothing answers before all workers accept, so what is left to tell is whether they still do.
async fn readyz(State(service): State<Arc<Service>>) -> impl IntoResponse {
    if service.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn status(State(service): State<Arc<Service>>) -> Json<Status> {
    let view = service.view().await;
    Json(Status::new(service.plan(), &view, service.uptime().as_secs()))
}

async fn flows(
    State(service): State<Arc<Service>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page>, FlowsError> {
    let query = Query::from_text(&query.unwrap_or_default()).map_err(FlowsError::Query)?;
    service.flows(&query).await.map(Json)
}

async fn flow(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<Json<Shown>, FlowsError> {
    service.flow(id.parse().map_err(FlowsError::Query)?).await.map(Json)
}

async fn forget(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<String, FlowsError> {
    let id: FlowId = id.parse().map_err(FlowsError::Query)?;
    service.forget(id).await.map(|()| format!("forgot {id}\n"))
}

impl IntoResponse for FlowsError {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::Gone(_) => StatusCode::NOT_FOUND,
            Self::Late | Self::Silent(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, format!("{self}\n")).into_response()
    }
}
