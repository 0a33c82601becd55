//! The part of the admin interface by which another program takes over.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;

use crate::service::Service;
use crate::upgrade::{self, Answer, Refused};

pub(super) fn changing() -> Router<Arc<Service>> {
    Router::new().route("/v1/upgrade", post(upgrade))
}

async fn upgrade(State(service): State<Arc<Service>>) -> Result<Json<Answer>, Refused> {
    upgrade::aside(service).await.map(Json)
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy | Self::SwapUnderWay(_) | Self::FirstProcess => StatusCode::CONFLICT,
            Self::Draining | Self::System(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, format!("{self}\n")).into_response()
    }
}
