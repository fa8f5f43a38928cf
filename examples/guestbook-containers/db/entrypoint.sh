# Makes the cluster once, with POSTGRES_USER and the password in the file POSTGRES_PASSWORD_FILE, then becomes PostgreSQL.
set -euo pipefail
[[ ${1:-} == postgres ]] || exec "$@"

as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }

install -d -o postgres -g postgres -m 2775 /run/postgresql
install -d -o postgres -g postgres -m 700 "$PGDATA"
if [[ ! -s $PGDATA/ready ]]; then
    # What an interrupted start left is no cluster.
    find "$PGDATA" -mindepth 1 -delete
    password=$(mktemp)
    cp "$POSTGRES_PASSWORD_FILE" "$password"
    chown postgres "$password"
    as_postgres initdb --username="$POSTGRES_USER" --pwfile="$password" --auth=scram-sha-256 --auth-local=peer \
        --encoding=UTF8 --no-locale >/dev/null
    rm "$password"
    echo 'local all all trust' >"$PGDATA/pg_hba.conf"
    as_postgres pg_ctl start --silent --wait --options="-c listen_addresses=''"
    as_postgres createdb --username="$POSTGRES_USER" --host=/run/postgresql "$POSTGRES_USER"
    as_postgres pg_ctl stop --silent --wait --mode=fast
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo made >"$PGDATA/ready"
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups -- postgres -c 'listen_addresses=*' "${@:2}"
