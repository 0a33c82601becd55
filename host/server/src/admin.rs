//! The admin interface: HTTP over the Unix socket, and over a loopback address if one is given.
//!
//! Read-only, and it asks nobody who they are: the socket is its owner's alone, and an address that
//! others could reach is refused when the configuration is read.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use tokio::net::{TcpListener, UnixListener};

use crate::metrics;
use crate::runtime;
use crate::service::Service;
use crate::status::Status;

/// Serves on the Unix socket.
pub fn serve_unix(listener: UnixListener, service: Arc<Service>) {
    runtime::spawn(async {
        if let Err(error) = axum::serve(listener, router(service)).await {
            tracing::error!(%error, "the admin socket has ended");
        }
    });
}

/// Serves on a loopback address.
pub fn serve_http(listener: TcpListener, service: Arc<Service>) {
    runtime::spawn(async {
        if let Err(error) = axum::serve(listener, router(service)).await {
            tracing::error!(%error, "the admin address has ended");
        }
    });
}

fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/v1/status", get(status))
        .with_state(service)
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
