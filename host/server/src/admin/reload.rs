//! The part of the admin interface by which the configuration is read again.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;

use crate::reload::{self, Answer, Refused};
use crate::service::Service;

pub(super) fn changing() -> Router<Arc<Service>> {
    Router::new().route("/v1/reload", post(reload))
}

async fn reload(State(service): State<Arc<Service>>) -> Result<Json<Answer>, Refused> {
    reload::aside(service).await.map(Json)
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Problems(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy => StatusCode::CONFLICT,
            Self::Draining | Self::System(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, format!("{self}\n")).into_response()
    }
}
