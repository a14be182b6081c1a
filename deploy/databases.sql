-- Postgres runs this once, when it makes its folder: Airflow's own database is POSTGRES_DB.
CREATE DATABASE mlflow;
