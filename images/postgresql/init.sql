-- Roles and databases of a region. Run at every start, by the superuser, on a server that nobody else can reach.
\set postgres_password `cat "$PASSWORDS_DIR/password"`
\set auth_password `cat "$PASSWORDS_DIR/auth-password"`
\set hosts_password `cat "$PASSWORDS_DIR/hosts-password"`

SET password_encryption = 'scram-sha-256';
SELECT format('CREATE ROLE %I', name) FROM (VALUES ('auth'), ('hosts')) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE postgres WITH PASSWORD :'postgres_password';
ALTER ROLE auth WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 20 PASSWORD :'auth_password';
ALTER ROLE hosts WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 20 PASSWORD :'hosts_password';

SELECT format('CREATE DATABASE %I OWNER %I', name, name) FROM (VALUES ('auth'), ('hosts')) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
REVOKE ALL ON DATABASE auth, hosts FROM PUBLIC;
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
