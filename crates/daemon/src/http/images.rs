//! `/images`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hearth_api::ErrorBody;
use hearth_api::images::{CreateImage, Image, ImportImage, ListImages};

use super::error::Failure;
use super::input::{Body, Named, Query};
use super::observe::to_the_end;
use super::view;
use crate::images::parse_ref;
use crate::serve::App;

/// All images
#[utoipa::path(get, path = "/images", tag = "images", operation_id = "listImages", responses(
    (status = 200, description = "They are in order of their names.", body = Vec<Image>),
    (status = "default", description = "Why not.", body = ErrorBody)),
    params(("tags" = Option<BTreeMap<String, String>>, Query, style = DeepObject, explode)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Query { query: ListImages {}, tags }: Query<ListImages>,
) -> Result<Json<Vec<Image>>, Failure> {
    let images = app.images.list()?;
    Ok(Json(images.iter().filter(|image| view::has_tags(&image.tags, &tags)).map(view::image).collect()))
}

/// An imported image, by its name
///
/// Images are imported (`POST /images/import`), not pulled: one that is not there is not found.
#[utoipa::path(post, path = "/images", tag = "images", operation_id = "createImage", request_body = CreateImage,
    responses(
    (status = 202, description = "It is there.", body = Image),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Body(request): Body<CreateImage>,
) -> Result<(StatusCode, Json<Image>), Failure> {
    let mut image = app.images.get(&parse_ref(&request.name)?)?;
    if let Some(tags) = request.tags.filter(|tags| !view::has_tags(&image.tags, tags)) {
        image.tags.extend(tags);
        app.host.store.update_image(&image).map_err(|error| crate::error::OpError::from_kind(&error))?;
    }
    Ok((StatusCode::ACCEPTED, Json(view::image(&image))))
}

/// Make an image of a path on the server (ours)
///
/// The answer comes when the image is ready. A name that was there leads to the new content
/// afterwards; instances keep what they were made of.
#[utoipa::path(post, path = "/images/import", tag = "images", operation_id = "importImage",
    request_body = ImportImage, responses(
    (status = 201, description = "It is ready.", body = Image),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Body(request): Body<ImportImage>,
) -> Result<(StatusCode, Json<Image>), Failure> {
    let name = parse_ref(&request.name)?;
    let path = PathBuf::from(&request.path);
    if !path.is_absolute() {
        return Err(Failure::invalid(format!(
            "field \"path\": {:?} is not an absolute path on the server",
            request.path
        )));
    }
    let images = app.images.clone();
    let tags = request.tags.unwrap_or_default();
    let image = to_the_end(async move { images.import(&path, name, tags).await }).await?;
    Ok((StatusCode::CREATED, Json(view::image(&image))))
}

/// One image
#[utoipa::path(get, path = "/images/{name}", tag = "images", operation_id = "getImage",
    params(("name" = String, Path, description = "Its reference, with slashes escaped.")), responses(
    (status = 200, description = "It.", body = Image),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn get(State(app): State<Arc<App>>, Named(name): Named<String>) -> Result<Json<Image>, Failure> {
    Ok(Json(view::image(&app.images.get(&parse_ref(&name)?)?)))
}

/// Remove an image
///
/// Instances and snapshots that were made of it keep it.
#[utoipa::path(delete, path = "/images/{name}", tag = "images", operation_id = "deleteImage",
    params(("name" = String, Path, description = "Its reference, with slashes escaped.")), responses(
    (status = 204, description = "It is gone."),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn delete(State(app): State<Arc<App>>, Named(name): Named<String>) -> Result<StatusCode, Failure> {
    let name = parse_ref(&name)?;
    let images = app.images.clone();
    to_the_end(async move { images.delete(&name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
