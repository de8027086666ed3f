import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Base64;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;

/** Reads keys in base64, one per line, and prints the partition the Java producer chooses for each. */
class Partitions {
    public static void main(String[] arguments) throws Exception {
        int partitions = Integer.parseInt(arguments[0]);
        BufferedReader keys = new BufferedReader(new InputStreamReader(System.in));
        for (String key = keys.readLine(); key != null; key = keys.readLine()) {
            System.out.println(
                BuiltInPartitioner.partitionForKey(Base64.getDecoder().decode(key), partitions));
        }
    }
}
