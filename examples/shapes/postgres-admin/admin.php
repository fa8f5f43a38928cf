<?php
// Lists the tables of every schema.
$password = file_get_contents('/run/secrets/password');
$db = new PDO('pgsql:host=db;dbname=admin;user=admin', null, $password);
header('Content-Type: text/plain');
foreach ($db->query('SELECT schemaname, tablename FROM pg_tables ORDER BY 1, 2') as $row) {
    echo "$row[0].$row[1]\n";
}
