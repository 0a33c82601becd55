//! The admin interface: HTTP over the Unix socket, and over an address if one is given.
//!
//! The socket is its owner's alone, so nobody who comes there is asked who it is. Whoever comes to
//! the address may look, if it is one of this machine's own and has no token. Where it has a token,
//! only those who know it get an answer, and may change things too; an address that others can
//! reach without one, or in the clear, is refused when the configuration is read.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get};
use axum::serve::Listener;
use tokio::net::{TcpListener, UnixListener};

mod doors;
mod endpoints;
mod policies;
mod reload;
mod tls;
mod token;
mod upgrade;

pub use doors::Doors;
pub use tls::{TlsProblem, TlsServer};
pub use token::Token;

use tls::TlsListener;

use crate::flows::{FlowId, Page, Query, Shown};
use crate::metrics;
use crate::runtime;
use crate::service::{FlowsError, Service};
use crate::status::Status;

/// Serves on the Unix socket.
pub fn serve_unix(listener: UnixListener, service: &Arc<Service>) {
    let routes = probes().merge(looking()).merge(changing()).with_state(Arc::clone(service));
    serve("socket", listener, routes, service);
}

/// Serves on an address.
///
/// # Errors
/// The socket is no good.
pub fn serve_http(listener: TcpListener, service: &Arc<Service>) -> io::Result<()> {
    let setup = service.setup();
    let admin = &setup.plan.admin;
    let tls = admin.tls.clone();
    let routes = match admin.token.clone() {
        Some(token) => guarded(Arc::clone(service), token),
        None => probes().merge(looking()).with_state(Arc::clone(service)),
    };
    match tls {
        Some(tls) => serve("address", TlsListener::start(listener, &tls)?, routes, service),
        None => serve("address", listener, routes, service),
    }
    Ok(())
}

/// Serves until another process does.
fn serve<L>(what: &'static str, listener: L, routes: Router, service: &Service)
where
    L: Listener,
    L::Addr: Debug,
{
    let (door, closed, guests) = service.doors().open(listener);
    runtime::spawn(async move {
        if let Err(error) = axum::serve(door, routes).with_graceful_shutdown(closed).await {
            tracing::error!(%error, "the admin {what} has ended");
        }
        drop(guests);
    });
}

/// Everything, for those who know the token. Whoever only asks whether it lives needs none.
fn guarded(service: Arc<Service>, token: Token) -> Router {
    let guard = from_fn_with_state(Arc::new(token), token::require);
    let behind = looking().merge(changing()).layer(guard);
    probes().merge(behind).with_state(service)
}

/// What changes something.
fn changing() -> Router<Arc<Service>> {
    let changing = policies::changing().merge(endpoints::changing()).merge(reload::changing());
    let changing = changing.merge(upgrade::changing());
    changing.route("/v1/flows/{id}", delete(forget))
}

/// What tells nothing but that somebody is there.
fn probes() -> Router<Arc<Service>> {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz))
}

/// What only shows something.
fn looking() -> Router<Arc<Service>> {
    Router::new()
        .route("/metrics", get(metrics))
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
    Json(Status::new(&view, service.uptime().as_secs()))
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
