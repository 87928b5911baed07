"""The only room that knows psycopg, the tables and their SQL."""
