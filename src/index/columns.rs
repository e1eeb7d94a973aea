//! Our types as columns, and back.

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};
use uuid::Uuid;

use super::{TaskId, WorkspaceId};
use crate::digest::Digest;
use crate::path::RelPathBuf;

/// A value as a column holds it.
pub(super) struct Column<T>(pub(super) T);

/// Reads column `index` of `row`.
pub(super) fn get<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    Column<T>: FromSql,
{
    row.get::<_, Column<T>>(index).map(|column| column.0)
}

/// Reads column `index` of `row`, which may be null.
pub(super) fn get_optional<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>>
where
    Column<T>: FromSql,
{
    row.get::<_, Option<Column<T>>>(index).map(|column| column.map(|column| column.0))
}

/// Reads a path from column `index` of `row`.
pub(super) fn get_path(row: &Row<'_>, index: usize) -> rusqlite::Result<RelPathBuf> {
    RelPathBuf::new(row.get::<_, Vec<u8>>(index)?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Blob, Box::new(error)))
}

impl ToSql for Column<Uuid> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for Column<Uuid> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        <[u8; 16]>::column_result(value).map(|bytes| Self(Uuid::from_bytes(bytes)))
    }
}

impl ToSql for Column<Digest> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for Column<Digest> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        <[u8; 32]>::column_result(value).map(|bytes| Self(Digest::from_bytes(bytes)))
    }
}

impl ToSql for Column<u64> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.cast_signed().into())
    }
}

impl FromSql for Column<u64> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i64::column_result(value).map(|number| Self(number.cast_unsigned()))
    }
}

impl ToSql for TaskId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for TaskId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Column::<Digest>::column_result(value).map(|column| Self(column.0))
    }
}

impl ToSql for WorkspaceId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for WorkspaceId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Column::<Digest>::column_result(value).map(|column| Self(column.0))
    }
}

/// Reads nanoseconds within a second.
pub(super) struct Nanos(pub(super) u32);

impl FromSql for Nanos {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let nanos = i64::column_result(value)?;
        match u32::try_from(nanos) {
            Ok(nanos) if nanos < 1_000_000_000 => Ok(Self(nanos)),
            _ => Err(FromSqlError::OutOfRange(nanos)),
        }
    }
}
